package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPullByTagAndDigestInEveryCompression(t *testing.T) {
	h, s := newHub(t), newStore(t)
	made := imageOf(t, "", pack("gzip", file{"a", "in gzip", 0}), pack("zstd", file{"b", "in zstd", 0}), pack("", file{"c", "plain", 0}))
	ref := h.push(t, "team/app:1", made)
	img := pull(t, s, ref)
	if img.ID != idOf(t, made) || !slices.Equal(img.Tags, []string{ref}) {
		t.Errorf("got id %s tags %v, want %s %s", img.ID, img.Tags, idOf(t, made), ref)
	}
	byDigest := h.host() + "/team/app@" + digestOf(t, made).String()
	if !slices.Equal(img.Digests, []string{byDigest}) {
		t.Errorf("digests %v, want %s", img.Digests, byDigest)
	}
	if content(t, img, 0, "a") != "in gzip" || content(t, img, 1, "b") != "in zstd" || content(t, img, 2, "c") != "plain" {
		t.Error("layers are not in order or not whole")
	}
	if img.Size <= int64(len("in gzip")+len("in zstd")+len("plain")) || img.Config.Config.Cmd[0] != "/bin/true" {
		t.Errorf("size %d, config %+v", img.Size, img.Config.Config)
	}
	h.forget()
	again := pull(t, s, h.host()+"/team/app:ignored@"+digestOf(t, made).String())
	if again.ID != img.ID || len(again.Tags) != 1 || h.asked("blobs") != 0 || h.asked("GET") != 0 {
		t.Errorf("pull by digest gave %v after %v", again.Tags, h.requests)
	}
	tidy(t, s, 1, 3)
}

func TestPullDockerTypesAndRepeatedLayer(t *testing.T) {
	h, s := newHub(t), newStore(t)
	l, m := pack("gzip", file{"a", "1", 0}), pack("gzip", file{"b", "2", 0})
	l.media, m.media = types.DockerLayer, types.DockerLayer
	made := imageOf(t, "", l, m, l)
	made = mutate.MediaType(mutate.ConfigMediaType(made, types.DockerConfigJSON), types.DockerManifestSchema2)
	img := pull(t, s, h.push(t, "docker/app:1", made))
	if len(img.Layers) != 2 || content(t, img, 0, "b") != "2" || content(t, img, 1, "a") != "1" {
		t.Errorf("layers %v: overlayfs takes each once, and the upper one counts", img.Layers)
	}
	if h.asked("blobs/"+digest.FromBytes(l.packed).String()) != 1 {
		t.Error("a layer that occurs twice was fetched twice")
	}
	tidy(t, s, 1, 2)
}

func TestPullChoosesPlatform(t *testing.T) {
	h := newHub(t)
	images := map[string]v1.Image{}
	for _, p := range []string{"linux/amd64", "linux/arm64/v8", "linux/arm/v6", "linux/arm/v7", "windows/amd64"} {
		images[p] = imageOf(t, p, pack("gzip", file{"platform", p, 0}))
	}
	flat := h.push(t, "flat:1", indexOf(images))
	nested := h.push(t, "nested:1", mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: indexOf(images)}))
	single := h.push(t, "single:1", images["linux/amd64"])
	for _, c := range []struct{ ref, want, got string }{
		{flat, "linux/amd64", "linux/amd64"}, {flat, "linux/arm64", "linux/arm64/v8"}, {flat, "linux/arm/v7", "linux/arm/v7"},
		{flat, "linux/arm/v6", "linux/arm/v6"}, {nested, "linux/arm64", "linux/arm64/v8"}, {single, "linux/amd64", "linux/amd64"},
	} {
		s := newStore(t)
		p := parsePlatform(c.want)
		img, err := s.Pull(deadline(t), c.ref, PullOptions{Platform: &ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}})
		if err != nil {
			t.Errorf("%s for %s: %v", c.ref, c.want, err)
		} else if got := content(t, img, 0, "platform"); got != c.got {
			t.Errorf("%s for %s gave %s, want %s", c.ref, c.want, got, c.got)
		}
	}
	for _, ref := range []string{flat, nested, single} {
		_, err := newStore(t).Pull(deadline(t), ref, PullOptions{Platform: &ocispec.Platform{Architecture: "riscv64"}})
		if !errors.Is(err, ErrPlatform) || !strings.Contains(err.Error(), "wanted linux/riscv64, there is linux/amd64") {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

func TestPullErrorsAreTyped(t *testing.T) {
	h, s := newHub(t), newStore(t)
	ref := h.push(t, "app:1", imageOf(t, "", pack("gzip", file{"a", "1", 0})))
	for _, c := range []struct {
		code  int
		class error
	}{{401, ErrDenied}, {403, ErrDenied}, {404, ErrNotFound}, {429, ErrUnavailable}, {500, ErrUnavailable}, {503, ErrUnavailable}} {
		for _, at := range []string{"/manifests/", "/blobs/"} {
			h.hand(status(at, c.code))
			_, err := s.Pull(deadline(t), ref, PullOptions{})
			if !errors.Is(err, c.class) || !strings.Contains(err.Error(), h.host()) || !strings.Contains(err.Error(), ref) {
				t.Errorf("%d at %s: %v; want %v", c.code, at, err, c.class)
			}
			for _, other := range []error{ErrDenied, ErrNotFound, ErrUnavailable} {
				if other != c.class && errors.Is(err, other) {
					t.Errorf("%d at %s is also %v: %v", c.code, at, other, err)
				}
			}
		}
	}
	tidy(t, s, 0, 0)
	h.hand(nil)
	pull(t, s, ref)
	h.Server.Close()
	if _, err := s.Pull(deadline(t), ref, PullOptions{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("registry down: %v", err)
	}
	if _, err := s.Pull(deadline(t), "Not A Name", PullOptions{}); !errors.Is(err, ErrReference) {
		t.Errorf("malformed: %v", err)
	}
}

func TestPullRetriesWhatPasses(t *testing.T) {
	h, s := newHub(t), newStore(t)
	ref := h.push(t, "app:1", imageOf(t, "", pack("gzip", file{"a", "1", 0})))
	left := 2
	h.hand(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/1") || left == 0 {
			return false
		}
		left--
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	pull(t, s, ref)
}

// cutter ends each blob's connection after so many bytes.
func cutter(h *hub, bytes int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		answer := httptest.NewRecorder()
		h.inner.ServeHTTP(answer, r)
		body := answer.Body.Bytes()
		for k, v := range answer.Header() {
			w.Header()[k] = v
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(answer.Code)
		if len(body) <= bytes {
			w.Write(body)
			return true
		}
		w.Write(body[:bytes])
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

func TestPullReadsOnWhereAConnectionBroke(t *testing.T) {
	h, s := newHub(t), newStore(t)
	want := noise(1, 3<<20)
	l := pack("gzip", file{"big", want, 0})
	ref := h.push(t, "app:1", imageOf(t, "", l))
	h.hand(cutter(h, 300<<10))
	img := pull(t, s, ref)
	if content(t, img, 0, "big") != want {
		t.Error("the layer is not what it should be")
	}
	blob := digest.FromBytes(l.packed).String()
	if n := h.asked(blob + " bytes="); n != 10 {
		t.Errorf("%d range requests, want 10: %v", n, h.requests)
	}
	if n := h.asked(blob + " bytes=307200-"); n != 1 {
		t.Errorf("did not go on at the byte reached: %v", h.requests)
	}
	tidy(t, s, 1, 1)
}

func TestPullReadsOnFromServerWithoutRanges(t *testing.T) {
	h, s := newHub(t), newStore(t)
	want := noise(2, 1<<20)
	ref := h.push(t, "app:1", imageOf(t, "", pack("", file{"big", want, 0})))
	once := sync.Once{}
	cut := cutter(h, 500<<10)
	h.hand(func(w http.ResponseWriter, r *http.Request) (done bool) {
		r.Header.Del("Range")
		if strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet {
			once.Do(func() { done = cut(w, r) })
		}
		return done
	})
	if img := pull(t, s, ref); content(t, img, 0, "big") != want {
		t.Error("the layer is not what it should be")
	}
}

// TestPullIsContentWithAllBytes: a connection that breaks behind the last byte is not read on from there, which no range can say.
func TestPullIsContentWithAllBytes(t *testing.T) {
	h, s := newHub(t), newStore(t)
	l := pack("gzip", file{"a", noise(2, 100<<10), 0})
	ref := h.push(t, "app:1", imageOf(t, "", l))
	h.hand(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, digest.FromBytes(l.packed).String()) {
			return false
		}
		if r.Header.Get("Range") != "" {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return true
		}
		w.Write(l.packed) // in chunks, as no length is told
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	pull(t, s, ref)
}

func TestPullGivesUpWithoutProgress(t *testing.T) {
	h, s := newHub(t), newStore(t)
	ref := h.push(t, "app:1", imageOf(t, "", pack("", file{"big", noise(2, 1<<20), 0}), pack("gzip", file{"other", "x", 0})))
	h.hand(func(w http.ResponseWriter, r *http.Request) bool {
		if rng := r.Header.Get("Range"); rng != "" {
			panic(http.ErrAbortHandler)
		}
		return cutter(h, 4096)(w, r)
	})
	_, err := s.Pull(deadline(t), ref, PullOptions{})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "at byte 4096 of") {
		t.Errorf("got %v", err)
	}
	tidy(t, s, 0, 0)
}

// swap answers a blob's request with other bytes of the same length.
func swap(d digest.Digest, body []byte) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, d.String()) {
			return false
		}
		w.Write(body)
		return true
	}
}

func TestPullRefusesWrongContent(t *testing.T) {
	h, s := newHub(t), newStore(t)
	l := pack("gzip", file{"a", noise(3, 200<<10), 0})
	packed := digest.FromBytes(l.packed)
	made := imageOf(t, "", l)
	ref := h.push(t, "app:1", made)
	garbled := slices.Clone(l.packed)
	garbled[len(garbled)/2] ^= 1
	lying := pack("gzip", file{"a", "1", 0})
	lying.wrongDiffID = true
	for what, hand := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"garbled layer":  swap(packed, garbled),
		"not an archive": swap(packed, []byte(noise(4, len(l.packed)))),
		"longer layer":   swap(packed, append(slices.Clone(l.packed), 0)),
		"other config":   swap(idOf(t, made), []byte("{}")),
		"other manifest": swap(digestOf(t, made), []byte("{}")),
	} {
		h.hand(hand)
		if _, err := s.Pull(deadline(t), ref, PullOptions{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
		tidy(t, s, 0, 0)
	}
	h.hand(nil)
	if _, err := s.Pull(deadline(t), h.push(t, "lying:1", imageOf(t, "", lying)), PullOptions{}); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "archive should be") {
		t.Errorf("wrong diff id: %v", err)
	}
	tidy(t, s, 0, 0)
	pull(t, s, ref)
}

func TestPullNamesUnsupportedFormats(t *testing.T) {
	h, s := newHub(t), newStore(t)
	odd := pack("gzip", file{"a", "1", 0})
	odd.media = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
	old := h.push(t, "old:1", imageOf(t, "", pack("gzip", file{"a", "1", 0})))
	for ref, want := range map[string]string{
		h.push(t, "encrypted:1", imageOf(t, "", odd)): "+encrypted",
	} {
		if _, err := s.Pull(deadline(t), ref, PullOptions{}); !errors.Is(err, errUnsupported) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	h.hand(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")
		io.WriteString(w, `{"schemaVersion":1,"fsLayers":[]}`)
		return strings.Contains(r.URL.Path, "/manifests/")
	})
	if _, err := s.Pull(deadline(t), old, PullOptions{}); err == nil || !strings.Contains(err.Error(), "schema 1") {
		t.Errorf("schema 1: %v", err)
	}
}

func TestCancelledPullLeavesNothing(t *testing.T) {
	h, s := newHub(t), newStore(t)
	ref := h.push(t, "app:1", imageOf(t, "", pack("gzip", file{"a", noise(5, 1<<20), 0}), pack("gzip", file{"b", noise(6, 1<<20), 0})))
	ctx, cancel := context.WithCancel(deadline(t))
	h.hand(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") && strings.Contains(r.Header.Get("Accept"), "*/*") && h.asked("/blobs/") >= 3 {
			w.Header().Set("Content-Length", "1000000")
			io.WriteString(w, "\x1f\x8b") // the start of gzip, and then nothing more
			http.NewResponseController(w).Flush()
			cancel()
			<-r.Context().Done()
			return true
		}
		return false
	})
	if _, err := s.Pull(ctx, ref, PullOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	tidy(t, s, 0, 0)
}

func TestConcurrentPullsFetchEachBlobOnce(t *testing.T) {
	h, s := newHub(t), newStore(t)
	shared := pack("gzip", file{"shared", noise(7, 1<<20), 0})
	one := h.push(t, "one:1", imageOf(t, "", shared, pack("gzip", file{"a", "1", 0})))
	two := h.push(t, "two:1", imageOf(t, "", shared, pack("zstd", file{"b", "2", 0})))
	gate := make(chan struct{})
	h.hand(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			<-gate
		}
		return false
	})
	first, giveUp := context.WithCancel(deadline(t))
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := s.Pull(first, one, PullOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("the caller who gave up got %v", err)
		}
	})
	for until(t, func() bool { return h.asked("/blobs/") > 0 }) {
	}
	for _, ref := range []string{one, one, one, two, two} {
		wg.Go(func() {
			var last Progress
			img, err := s.Pull(deadline(t), ref, PullOptions{Progress: func(p Progress) { last = p }})
			if err != nil || len(img.Layers) != 2 {
				t.Errorf("%s: %v", ref, err)
			} else if last.Phase != "done" && last.Phase != "exists" || last.Done != last.Total {
				t.Errorf("the last word on progress was %+v", last)
			}
		})
	}
	for until(t, func() bool { return users(s) == 6 }) {
	}
	giveUp()
	for until(t, func() bool { return users(s) == 5 }) {
	}
	close(gate)
	wg.Wait()
	for _, r := range slices.Compact(slices.Sorted(slices.Values(h.requests))) {
		if strings.Contains(r, "GET") && h.asked(r) != 1 {
			t.Errorf("%d times %s", h.asked(r), r)
		}
	}
	tidy(t, s, 2, 3)
}

func users(s *Store) (n int) {
	s.pulls.mu.Lock()
	defer s.pulls.mu.Unlock()
	for _, fl := range s.pulls.running {
		n += fl.users
	}
	return n
}

// until waits a moment and reports whether there is still something to wait for; go test's own timeout bounds it.
func until(t *testing.T, done func() bool) bool {
	t.Helper()
	if done() {
		return false
	}
	time.Sleep(2 * time.Millisecond)
	return true
}

func TestAnothersFailureIsNotMine(t *testing.T) {
	h, s := newHub(t), newStore(t)
	shared := pack("gzip", file{"shared", "1", 0})
	bad := h.push(t, "bad:1", imageOf(t, "", shared))
	good := h.push(t, "good:1", imageOf(t, "", shared, pack("gzip", file{"b", "2", 0})))
	waiting, failing := make(chan struct{}), make(chan struct{})
	h.hand(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/bad/blobs/"+digest.FromBytes(shared.packed).String()) {
			close(waiting)
			<-failing
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := s.Pull(deadline(t), bad, PullOptions{}); !errors.Is(err, ErrDenied) {
			t.Errorf("bad: %v", err)
		}
	})
	<-waiting
	wg.Go(func() {
		if _, err := s.Pull(deadline(t), good, PullOptions{}); err != nil {
			t.Errorf("good: %v", err)
		}
	})
	for until(t, func() bool { return h.asked("/good/blobs/") >= 2 }) { // config and its own layer
	}
	close(failing)
	wg.Wait()
	tidy(t, s, 1, 2)
}

func TestSharedLayerIsFetchedOnceAndOutlivesOneImage(t *testing.T) {
	h, s := newHub(t), newStore(t)
	shared := pack("gzip", file{"shared", "1", 0})
	one := h.push(t, "one:1", imageOf(t, "", shared, pack("gzip", file{"a", "1", 0})))
	two := h.push(t, "two:1", imageOf(t, "", shared, pack("gzip", file{"b", "2", 0})))
	pull(t, s, one)
	h.forget()
	img := pull(t, s, two)
	if h.asked("blobs/"+digest.FromBytes(shared.packed).String()) != 0 {
		t.Error("a layer that was here was fetched")
	}
	if err := s.Remove(deadline(t), one); err != nil {
		t.Fatal(err)
	}
	checkWhole(t, img)
	tidy(t, s, 1, 2)
	bytes, inodes := s.FsInfo()
	if bytes == 0 || inodes == 0 {
		t.Errorf("FsInfo %d %d", bytes, inodes)
	}
	inUse := img.Layers[1].DiffID
	s.InUse = func() map[digest.Digest]bool { return map[digest.Digest]bool{inUse: true} }
	if err := s.Remove(deadline(t), img.ID.Encoded()[:12]); err != nil {
		t.Fatal(err)
	}
	tidy(t, s, 0, 1)
	reopen(t, s)
	tidy(t, s, 0, 1)
	s.InUse = nil
	if err := s.Collect(deadline(t)); err != nil {
		t.Fatal(err)
	}
	tidy(t, s, 0, 0)
	for _, ref := range []string{one, "sha256:" + strings.Repeat("0", 64), "nothing/here"} {
		if err := s.Remove(deadline(t), ref); err != nil {
			t.Errorf("removing what is not there: %v", err)
		}
	}
}

func TestNamesAccumulateAndMove(t *testing.T) {
	h, s := newHub(t), newStore(t)
	old, now := imageOf(t, "", pack("gzip", file{"v", "1", 0})), imageOf(t, "", pack("gzip", file{"v", "2", 0}))
	latest := h.push(t, "app:latest", old)
	pull(t, s, latest)
	img := pull(t, s, h.push(t, "copy:1", old))
	if len(img.Tags) != 2 || len(img.Digests) != 2 || len(s.List()) != 1 {
		t.Errorf("one image from two repositories has tags %v digests %v", img.Tags, img.Digests)
	}
	h.push(t, "app:latest", now)
	for i := range 2 {
		moved := pull(t, s, latest)
		was, err := s.Get(idOf(t, old).String())
		if err != nil || slices.Contains(was.Tags, latest) || len(was.Digests) != 2 || moved.ID != idOf(t, now) || !slices.Contains(moved.Tags, latest) {
			t.Errorf("round %d: was %+v, moved %+v: %v", i, was, moved, err)
		}
		if got, err := s.Get(latest); err != nil || got.ID != moved.ID || s.List()[0].ID != moved.ID {
			t.Errorf("round %d: Get gives %v %v", i, got, err)
		}
		reopen(t, s)
	}
	// A crash between the two records leaves the tag in both; the newer one is right.
	e := s.byID(idOf(t, old)).record
	e.Tags = append(e.Tags, latest)
	if err := s.save(e); err != nil {
		t.Fatal(err)
	}
	reopen(t, s)
	if got, err := s.Get(latest); err != nil || got.ID != idOf(t, now) {
		t.Errorf("after a crash %s is %v %v", latest, got, err)
	}
	if was, _ := s.Get(e.ID.String()); slices.Contains(was.Tags, latest) {
		t.Error("the old image still claims the tag")
	}
}

func TestGetKnowsEveryName(t *testing.T) {
	h, s := newHub(t), newStore(t)
	made := imageOf(t, "", pack("gzip", file{"v", "1", 0}))
	writeHosts(t, s, "docker.io", fmt.Sprintf("server = %q\n", h.URL))
	h.push(t, "library/busybox:latest", made)
	s.Pinned = []string{"busybox"}
	if err := s.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	img := pull(t, s, "busybox")
	if !img.Pinned || img.Tags[0] != "docker.io/library/busybox:latest" {
		t.Errorf("got %+v", img)
	}
	hex := img.ID.Encoded()
	for _, ref := range []string{hex, "sha256:" + hex, hex[:12], hex[:4], "sha256:" + hex[:13], "busybox", "busybox:latest",
		"docker.io/busybox", "index.docker.io/library/busybox:latest", img.Digests[0], "busybox@" + digestOf(t, made).String()} {
		if got, err := s.Get(ref); err != nil || got.ID != img.ID {
			t.Errorf("Get(%s): %v", ref, err)
		}
	}
	for _, ref := range []string{hex[:3], "busybox:1", "quay.io/busybox", strings.Repeat("0", 64), "0000"} {
		if _, err := s.Get(ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("Get(%s): %v", ref, err)
		}
	}
	if _, err := s.Get("no such:Thing!"); !errors.Is(err, ErrReference) {
		t.Errorf("malformed: %v", err)
	}
}

// TestAShortIDOfTwoImagesIsNone: least of all may its removal be said to have worked.
func TestAShortIDOfTwoImagesIsNone(t *testing.T) {
	s := newStore(t)
	one, two := "abcd1"+strings.Repeat("0", 59), "abcd2"+strings.Repeat("0", 59)
	for _, hex := range []string{one, two} {
		s.enter(record{ID: digest.Digest("sha256:" + hex), Tags: []string{"docker.io/library/" + hex[:5] + ":1"}})
	}
	_, got := s.Get("sha256:abcd")
	_, found := s.Find("abcd")
	for what, err := range map[string]error{"Get": got, "Find": found, "Remove": s.Remove(t.Context(), "abcd")} {
		if !errors.Is(err, ErrAmbiguous) || errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", what, err)
			continue
		}
		for _, want := range []string{one, two, "docker.io/library/abcd1:1", "docker.io/library/abcd2:1"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s does not name %s: %v", what, want, err)
			}
		}
	}
	if err := s.Remove(t.Context(), "abcd1"); err != nil || len(s.List()) != 1 {
		t.Errorf("with one digit more: %v, %d images left", err, len(s.List()))
	}
}

// TestTooManyLayersAreNotFetched: what no kernel can mount is refused while it costs nothing yet.
func TestTooManyLayersAreNotFetched(t *testing.T) {
	h, s := newHub(t), newStore(t)
	var layers []v1.Layer
	for i := range maxLayers + 1 {
		layers = append(layers, pack("", file{"f", fmt.Sprint(i), 0}))
	}
	ref := h.push(t, "tall:1", imageOf(t, "", layers...))
	_, err := s.Pull(deadline(t), ref, PullOptions{})
	if err == nil || !strings.Contains(err.Error(), "image "+ref+" has 501 layers, and the kernel mounts 500") {
		t.Errorf("got %v", err)
	}
	if h.asked("/blobs/") != 1 { // the config
		t.Errorf("asked for %d blobs", h.asked("/blobs/"))
	}
	_, err = s.Import(deadline(t), bytes.NewReader(dockerArchive(t, "docker.io/tall:1", imageOf(t, "", layers...))), nil)
	if err == nil || !strings.Contains(err.Error(), "image docker.io/library/tall:1 has 501 layers") {
		t.Errorf("import: %v", err)
	}
	tidy(t, s, 0, 0)
	p := &plan{}
	for i := range maxLayers {
		p.layers = append(p.layers, blob{diffID: digest.FromString(fmt.Sprint(i))})
	}
	p.layers = append(p.layers, p.layers[0]) // mounted once
	if err := p.mountable(names{}, ""); err != nil {
		t.Error(err)
	}
	if err := p.mountable(names{}, digest.FromString("mend")); err == nil || !strings.Contains(err.Error(), p.id().String()) {
		t.Errorf("with a mend: %v", err)
	}
}

func TestDiskFullLeavesNothing(t *testing.T) {
	h, small := newHub(t), t.TempDir()
	mountTmpfs(t, small, "2m")
	s := &Store{Root: small}
	reopen(t, s)
	t.Cleanup(s.Close)
	ref := h.push(t, "big:1", imageOf(t, "", pack("gzip", file{"a", noise(8, 4<<20), 0})))
	if _, err := s.Pull(deadline(t), ref, PullOptions{}); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("got %v", err)
	}
	tidy(t, s, 0, 0)
	pull(t, s, h.push(t, "little:1", imageOf(t, "", pack("gzip", file{"a", noise(9, 200<<10), 0}))))
}
