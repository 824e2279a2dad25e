package image

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// wreck turns a byte of a file of a layer, and leaves size and times as they were.
func wreck(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2] ^= 1
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	os.Chtimes(path, info.ModTime(), info.ModTime())
}

func TestCheckFindsAndRepairsOneLayer(t *testing.T) {
	h, s := newHub(t), newStore(t)
	var logged strings.Builder
	logTo(s, &logged)
	img := imageOf(t, "", pack("gzip", file{"dir/", "", 0o700}, file{"dir/a", "one", 0}), pack("zstd", file{"dir/b", noise(1, 9000), 0}), pack("", file{"c", "three", 0}))
	ref := h.push(t, "app:1", img)
	other := pull(t, s, h.push(t, "other:1", imageOf(t, "", pack("gzip", file{"x", "y", 0}))))
	got := pull(t, s, ref)
	artifact, _ := h.artifactOf(t, "1", artifactBlob("model", []byte(noise(7, 5000))))
	model := pull(t, s, artifact)

	read := 0
	report, err := s.Check(t.Context(), false, func(n, of int) { read = n })
	if err != nil || len(report.Damages)+len(report.Unverifiable)+len(report.Broken) != 0 || report.Layers != 6 || read != 6 { // 5 and a mend
		t.Fatalf("a sound store: %+v, %v, %d told", report, err, read)
	}

	wreck(t, filepath.Join(got.Layers[1].Dir, "dir/b"))
	wreck(t, filepath.Join(model.Layers[0].Dir, "model"))
	s.InUse = func() map[digest.Digest]bool { return map[digest.Digest]bool{got.Layers[1].DiffID: true} }
	h.forget()
	report, err = s.Check(t.Context(), false, nil)
	if err != nil || len(report.Damages) != 2 || len(report.Broken) != 2 {
		t.Fatalf("a damaged store: %+v, %v", report, err)
	}
	for _, d := range report.Damages {
		if used := d.Layer == got.Layers[1].DiffID; d.InUse != used || len(d.Images) != 1 {
			t.Errorf("damage of %s: in use %v, images %v", d.Layer, d.InUse, d.Images)
		}
	}
	if _, err := s.Get(ref); err == nil {
		t.Error("an image with a damaged layer is listed")
	}
	if _, err := s.Get(string(other.ID)); err != nil {
		t.Errorf("the sound one is not: %v", err)
	}
	if h.asked("/") != 0 {
		t.Error("a check without repair asked a registry")
	}

	old, err := os.Open(filepath.Join(got.Layers[1].Dir, "dir")) // as a container's overlay holds it
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	report, err = s.Check(t.Context(), true, nil)
	if err != nil || len(report.Damages) != 0 || len(report.Broken) != 0 {
		t.Fatalf("repair: %+v, %v", report, err)
	}
	for i, l := range layersOf(t, img) {
		if want := i == 1; (h.asked("/blobs/"+string(digestOf(t, l))) > 0) != want {
			t.Errorf("layer %d fetched: %v", i, !want)
		}
	}
	if text := content(t, s.mustGet(t, ref), 1, "dir/b"); text != noise(1, 9000) {
		t.Error("the layer was not repaired")
	}
	if names, err := old.Readdirnames(-1); err != nil || len(names) != 1 {
		t.Errorf("the directory below a container was emptied: %v, %v", names, err)
	}
	if list, _ := os.ReadDir(s.aside()); len(list) != 1 {
		t.Errorf("aside: %v", list)
	}
	s.InUse = nil
	if err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if list, _ := os.ReadDir(s.aside()); len(list) != 0 {
		t.Errorf("aside after the container: %v", list)
	}
	if !strings.Contains(logged.String(), "damaged") {
		t.Error("damage was not logged")
	}
	tidy(t, s, 3, 6)
}

// TestDamageOutlivesARestart: what a check found damaged is not listed again because the daemon has forgotten it.
func TestDamageOutlivesARestart(t *testing.T) {
	h, s := newHub(t), newStore(t)
	ref := h.push(t, "app:1", imageOf(t, "", pack("gzip", file{"a", noise(1, 9000), 0}), pack("zstd", file{"b", noise(2, 9000), 0})))
	img := pull(t, s, ref)
	wreck(t, filepath.Join(img.Layers[0].Dir, "a"))
	h.hand(status("/", 503))
	if report, err := s.Check(t.Context(), false, nil); err != nil || len(report.Broken) != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	for range 2 {
		reopen(t, s)
		s.background.Wait()
		if _, err := s.Get(ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("an image with a damaged layer after a restart: %v", err)
		}
	}
	h.hand(nil)
	h.forget()
	if text := content(t, pull(t, s, ref), 0, "a"); text != noise(1, 9000) || h.asked("/blobs/") != 2 { // the config and the layer
		t.Errorf("not healed by its layer alone: %v", h.requests)
	}
	tidy(t, s, 1, 2)
}

// TestARemovedBrokenImageFreesItsDamagedLayer: at once, or when the last container on it has gone; not at the next start.
func TestARemovedBrokenImageFreesItsDamagedLayer(t *testing.T) {
	h, s := newHub(t), newStore(t)
	shared := pack("gzip", file{"a", noise(1, 9000), 0})
	one := h.push(t, "one:1", imageOf(t, "", shared, pack("", file{"b", "1", 0})))
	two := h.push(t, "two:1", imageOf(t, "", shared, pack("", file{"b", "2", 0})))
	pull(t, s, one)
	img := pull(t, s, two)
	wreck(t, filepath.Join(img.Layers[0].Dir, "a"))
	if report, err := s.Check(t.Context(), false, nil); err != nil || len(report.Broken) != 2 {
		t.Fatalf("%+v, %v", report, err)
	}
	must(t, s.Remove(t.Context(), one))
	if list, _ := os.ReadDir(filepath.Join(s.Root, "layers")); len(list) != 2 { // the damaged one stands until the other image's pull replaces it
		t.Errorf("layers: %v", list)
	}
	s.InUse = func() map[digest.Digest]bool { return map[digest.Digest]bool{img.Layers[0].DiffID: true} }
	must(t, s.Remove(t.Context(), two))
	if _, err := os.Stat(img.Layers[0].Dir); err != nil {
		t.Errorf("a layer was taken from a container: %v", err)
	}
	s.InUse = nil
	must(t, s.Collect(t.Context()))
	tidy(t, s, 0, 0)
}

// TestAHealedImageLeavesMovedTags: the name that another image got while this one was broken stays there.
func TestAHealedImageLeavesMovedTags(t *testing.T) {
	h, s := newHub(t), newStore(t)
	old := pull(t, s, h.push(t, "app:latest", imageOf(t, "", pack("gzip", file{"a", noise(1, 9000), 0}))))
	wreck(t, filepath.Join(old.Layers[0].Dir, "a"))
	if _, err := s.Check(t.Context(), false, nil); err != nil {
		t.Fatal(err)
	}
	ref := h.push(t, "app:latest", imageOf(t, "", pack("gzip", file{"a", noise(2, 9000), 0})))
	now := pull(t, s, ref)
	if report, err := s.Check(t.Context(), true, nil); err != nil || len(report.Broken) != 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	for range 2 {
		if got := s.mustGet(t, ref); got.ID != now.ID {
			t.Errorf("%s is the healed image, not the one pulled last", ref)
		}
		if healed := s.mustGet(t, string(old.ID)); len(healed.Tags) != 0 {
			t.Errorf("the healed image has tags %v", healed.Tags)
		}
		reopen(t, s)
	}
}

// TestDamageFoundDuringAPull: an image is not listed that counted on a layer which a check condemned meanwhile.
func TestDamageFoundDuringAPull(t *testing.T) {
	h, s := newHub(t), newStore(t)
	shared := pack("gzip", file{"a", noise(1, 9000), 0})
	one := pull(t, s, h.push(t, "one:1", imageOf(t, "", shared)))
	slow := pack("gzip", file{"b", "2", 0})
	two := h.push(t, "two:1", imageOf(t, "", shared, slow))
	asked, gate := make(chan struct{}), make(chan struct{})
	h.hand(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, digest.FromBytes(slow.packed).String()) {
			close(asked)
			<-gate
		}
		return false
	})
	done := make(chan error)
	go func() {
		_, err := s.Pull(deadline(t), two, PullOptions{})
		done <- err
	}()
	<-asked
	for until(t, func() bool { return s.Metrics().LayersReused == 1 }) {
	}
	wreck(t, filepath.Join(one.Layers[0].Dir, "a"))
	if report, err := s.Check(t.Context(), false, nil); err != nil || len(report.Damages) != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	close(gate)
	if err := <-done; err == nil || !strings.Contains(err.Error(), "found damaged just now") {
		t.Errorf("got %v", err)
	}
	h.hand(nil)
	if text := content(t, pull(t, s, two), 0, "a"); text != noise(1, 9000) {
		t.Error("the next pull did not bring the layer again")
	}
}

// TestAFailedPublishSparesALayerInUse: where the damaged layer cannot go aside it stays below its container.
func TestAFailedPublishSparesALayerInUse(t *testing.T) {
	h, s := newHub(t), newStore(t)
	img := pull(t, s, h.push(t, "app:1", imageOf(t, "", pack("gzip", file{"a", noise(1, 9000), 0}))))
	wreck(t, filepath.Join(img.Layers[0].Dir, "a"))
	s.InUse = func() map[digest.Digest]bool { return map[digest.Digest]bool{img.Layers[0].DiffID: true} }
	if err := errors.Join(os.Remove(s.aside()), os.WriteFile(s.aside(), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if report, _ := s.Check(t.Context(), true, nil); len(report.Broken) != 1 || !strings.Contains(report.Broken[0].Reason, "cannot publish layer") {
		t.Errorf("%+v", report)
	}
	s.background.Wait()
	if _, err := os.Stat(filepath.Join(img.Layers[0].Dir, "a")); err != nil {
		t.Errorf("the layer below a container: %v", err)
	}
}

func TestCheckFindsADamagedMend(t *testing.T) {
	h, s := newHub(t), newStore(t)
	img := pull(t, s, h.push(t, "app:1", imageOf(t, "", pack("gzip", file{"tmp/", "", 0o1777}), pack("gzip", file{"tmp/x", "1", 0}))))
	if len(img.Layers) != 3 {
		t.Fatalf("%d layers, want a mend on top", len(img.Layers))
	}
	os.Chmod(filepath.Join(img.Layers[2].Dir, "tmp"), 0o755)
	report, err := s.Check(t.Context(), true, nil)
	if err != nil || len(report.Damages) != 1 || len(report.Broken) != 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	if info, err := os.Stat(filepath.Join(s.mustGet(t, string(img.ID)).Layers[2].Dir, "tmp")); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("not mended: %v, %v", info, err)
	}
}

func TestAnUncleanBootIsLookedInto(t *testing.T) {
	h, s := newHub(t), newStore(t)
	s.background.Wait()
	img := pull(t, s, h.push(t, "app:1", imageOf(t, "", pack("gzip", file{"a", noise(3, 8192), 0}))))
	old := pull(t, s, h.push(t, "old:1", imageOf(t, "", pack("gzip", file{"b", noise(4, 8192), 0}))))
	before := time.Now().Add(-time.Hour)
	os.Chtimes(filepath.Join(filepath.Dir(old.Layers[0].Dir), "layer.json"), before, before)

	wreckBoth := func() {
		wreck(t, filepath.Join(img.Layers[0].Dir, "a"))
		wreck(t, filepath.Join(old.Layers[0].Dir, "b"))
	}
	boot := func(text string) {
		stat, _ := os.Stat(s.bootFile())
		if err := os.WriteFile(s.bootFile(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Chtimes(s.bootFile(), stat.ModTime(), stat.ModTime())
	}
	wreckBoth()
	boot("another-boot closed\n")
	reopen(t, s)
	s.background.Wait()
	if text := content(t, img, 0, "a"); text == noise(3, 8192) {
		t.Error("layers were read after a clean end")
	}
	boot("another-boot open\n")
	os.Chtimes(s.bootFile(), before.Add(time.Minute), before.Add(time.Minute))
	reopen(t, s)
	s.background.Wait()
	if text := content(t, s.mustGet(t, string(img.ID)), 0, "a"); text != noise(3, 8192) {
		t.Error("the damage of a power cut was not healed")
	}
	if text := content(t, old, 0, "b"); text == noise(4, 8192) {
		t.Error("a layer from long before the power cut was read")
	}
	now, _ := os.ReadFile(bootID)
	if text, _ := os.ReadFile(s.bootFile()); string(text) != strings.TrimSpace(string(now))+" open\n" {
		t.Errorf("the boot file says %q", text)
	}
	s.Close()
	if text, _ := os.ReadFile(s.bootFile()); !strings.HasSuffix(string(text), " closed\n") {
		t.Errorf("after Close the boot file says %q", text)
	}
}
