package image

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// TestTwoHundredCuts breaks the connections of one pull at two hundred random bytes.
func TestTwoHundredCuts(t *testing.T) {
	const cuts = 200
	h, s := newHub(t), newStore(t)
	s.patience = 2 * time.Second
	var layers []v1.Layer
	for i, compression := range []string{"gzip", "zstd", "", "gzip"} {
		layers = append(layers, pack(compression, file{fmt.Sprint("d", i, "/"), "", 0o755}, file{fmt.Sprintf("d%d/big", i), noise(uint64(i), 4<<20), 0}))
	}
	ref := h.push(t, "app:1", imageOf(t, "", layers...))
	var mu sync.Mutex
	left := cuts
	h.hand(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		if left == 0 {
			return false
		}
		left--
		defer mu.Lock() // given back while the answer is written
		mu.Unlock()
		return cutter(h, 1+mathrand.IntN(150<<10))(w, r)
	})
	img := pull(t, s, ref)
	mu.Lock()
	if left > 0 {
		t.Errorf("only %d connections were cut", cuts-left)
	}
	mu.Unlock()
	report, err := s.Check(t.Context(), false, nil)
	if err != nil || len(report.Damages) > 0 || report.Layers != 4 {
		t.Errorf("the layers are not byte for byte what they should be: %+v, %v", report, err)
	}
	for i := range layers {
		if content(t, img, i, fmt.Sprintf("d%d/big", i)) != noise(uint64(i), 4<<20) {
			t.Errorf("layer %d is wrong", i)
		}
	}
	if m := s.Metrics(); m.Resumptions < cuts/2 || m.LayersFetched != 4 || m.Pulls != 1 || m.Failures != 0 || m.BytesDownloaded < 16<<20 {
		t.Errorf("metrics: %+v", m)
	}
}

// trickle sends a blob a few bytes at a time.
func trickle(h *hub, hosts ...string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") || r.Header.Get("Range") == "" && len(hosts) > 0 {
			return false
		}
		w.Header().Set("Content-Length", "10000000")
		if r.Header.Get("Range") != "" {
			w.Header().Set("Content-Range", strings.Replace(r.Header.Get("Range"), "=", " ", 1)+"/10000000")
			w.WriteHeader(http.StatusPartialContent)
		}
		for r.Context().Err() == nil {
			w.Write([]byte("x"))
			http.NewResponseController(w).Flush()
			time.Sleep(20 * time.Millisecond)
		}
		return true
	}
}

func TestATrickleIsAStall(t *testing.T) {
	h, s := newHub(t), newStore(t)
	s.patience = 200 * time.Millisecond
	img := imageOf(t, "", pack("", file{"big", noise(1, 1<<20), 0}))
	ref := h.push(t, "app:1", img)
	layer := digestOf(t, layersOf(t, img)[0]).String()
	slow := trickle(h)
	h.hand(func(w http.ResponseWriter, r *http.Request) bool {
		return strings.HasSuffix(r.URL.Path, layer) && slow(w, r)
	})
	_, err := s.Pull(deadline(t), ref, PullOptions{})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "less than 64 KiB came") {
		t.Errorf("got %v", err)
	}
	if n := s.Metrics().Stalls; n != stallTries {
		t.Errorf("%d stalls, want %d", n, stallTries)
	}
	tidy(t, s, 0, 0)

	// A second host helps.
	other := newHub(t)
	other.push(t, "app:1", img)
	writeHosts(t, s, "slow.example", fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", other.URL, h.URL))
	pull(t, s, "slow.example/app:1")
}

func TestSlowButSteadyIsNoStall(t *testing.T) {
	h, s := newHub(t), newStore(t)
	s.patience = 500 * time.Millisecond
	ref := h.push(t, "app:1", imageOf(t, "", pack("", file{"big", noise(1, 1<<20), 0})))
	h.hand(paced(h, func(int) { time.Sleep(100 * time.Millisecond) }))
	pull(t, s, ref)
	if n := s.Metrics().Stalls; n != 0 {
		t.Errorf("%d stalls", n)
	}
}

// paced hands out blobs in pieces of stallFloor with a pause before each.
func paced(h *hub, pause func(at int)) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		answer := httptest.NewRecorder()
		h.inner.ServeHTTP(answer, r)
		w.Header().Set("Content-Length", fmt.Sprint(answer.Body.Len()))
		for at, body := 0, answer.Body.Bytes(); len(body) > 0; {
			pause(at)
			n := min(len(body), stallFloor)
			w.Write(body[:n])
			http.NewResponseController(w).Flush()
			at, body = at+n, body[n:]
		}
		return true
	}
}

// TestPullWithoutProgressEnds: what no other limit catches ends a pull all the same, with a word on why, and leaves nothing.
func TestPullWithoutProgressEnds(t *testing.T) {
	h, s := newHub(t), newStore(t)
	s.patience, s.idleLimit = time.Hour, 300*time.Millisecond
	ref := h.push(t, "app:1", imageOf(t, "", pack("", file{"big", noise(1, 1<<20), 0})))
	over := make(chan struct{})
	h.hand(paced(h, func(at int) {
		if at >= 256<<10 {
			<-over // the connection stays open and brings nothing
		}
	}))
	defer close(over)
	_, err := s.Pull(deadline(t), ref, PullOptions{})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no layer has made progress for 300ms") {
		t.Errorf("got %v", err)
	}
	tidy(t, s, 0, 0)
}

// TestSilenceInsideADocumentEnds: what begins to answer and then says nothing holds a pull no longer than what refuses it.
func TestSilenceInsideADocumentEnds(t *testing.T) {
	origin, mirror, s := newHub(t), newHub(t), newStore(t)
	s.answers = 2 * time.Second
	img := imageOf(t, "", pack("gzip", file{"a", "1", 0}))
	ref := origin.push(t, "app:1", img)
	mirror.push(t, "app:1", img)
	over := make(chan struct{})
	defer close(over)
	for what, path := range map[string]string{"manifest": "/manifests/" + digestOf(t, img).String(), "config": "/blobs/" + idOf(t, img).String()} {
		silent := func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, path) {
				return false
			}
			w.Header().Set("Content-Length", "500")
			w.Write([]byte("{"))
			http.NewResponseController(w).Flush()
			<-over
			return true
		}
		origin.hand(silent)
		if _, err := s.Pull(deadline(t), ref, PullOptions{}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no whole answer within 2s") {
			t.Errorf("%s: %v", what, err)
		}
	}
	writeHosts(t, s, "slow.example", fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", mirror.URL, origin.URL))
	pull(t, s, "slow.example/app:1")
}

// TestSlowPullIsNeverKilled takes half as long again as a pull may take without progress.
func TestSlowPullIsNeverKilled(t *testing.T) {
	h, s := newHub(t), newStore(t)
	s.idleLimit = 4 * time.Second
	ref := h.push(t, "app:1", imageOf(t, "", pack("", file{"big", noise(1, 2<<20), 0})))
	h.hand(paced(h, func(int) { time.Sleep(190 * time.Millisecond) }))
	begin := time.Now()
	pull(t, s, ref)
	if took := time.Since(begin); took < s.idleLimit {
		t.Errorf("the pull took %v, which proves nothing", took)
	}
}

// TestATrickleHoldsUpNobodyElse: zstd layers that a slow registry never ends take no other pull's windows.
func TestATrickleHoldsUpNobodyElse(t *testing.T) {
	slow, fast, s := newHub(t), newHub(t), newStore(t)
	s.Parallel = 2 * cap(s.windows)
	var layers []v1.Layer
	for i := range s.Parallel {
		layers = append(layers, pack("zstd", file{fmt.Sprint(i), noise(uint64(i), 1<<20), 0}))
	}
	ref := slow.push(t, "app:1", imageOf(t, "", layers...))
	over := make(chan struct{})
	slow.hand(paced(slow, func(at int) {
		if at >= 256<<10 { // more than is read ahead
			<-over
		}
	}))
	ctx, giveUp := context.WithCancel(deadline(t))
	var wg sync.WaitGroup
	wg.Go(func() { s.Pull(ctx, ref, PullOptions{}) })
	defer wg.Wait()
	defer giveUp()
	defer close(over)
	for until(t, func() bool { return len(s.windows) == cap(s.windows) }) {
	}
	pull(t, s, fast.push(t, "other:1", imageOf(t, "", pack("zstd", file{"a", "1", 0}), pack("zstd", file{"b", "2", 0}))))
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-1": 0, "soon": 0, "99999999999999": 1 << 31 * time.Second,
		"Wed, 02 Jan 2030 03:04:15 GMT": 10 * time.Second, "Wed, 02 Jan 2030 03:04:00 GMT": 0,
	} {
		if got := retryAfter(text, now); got != want {
			t.Errorf("%q is %v, want %v", text, got, want)
		}
	}
	h, s := newHub(t), newStore(t)
	ref := h.push(t, "app:1", imageOf(t, "", pack("gzip", file{"a", "1", 0})))
	for wish, patient := range map[string]bool{"1": true, "3600": false} {
		h.forget()
		tries := 0
		h.hand(func(w http.ResponseWriter, r *http.Request) bool {
			if tries++; tries > 1 {
				return false
			}
			w.Header().Set("Retry-After", wish)
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		})
		start := time.Now()
		_, err := s.Pull(deadline(t), ref, PullOptions{})
		if patient && (err != nil || time.Since(start) < time.Second) {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		if !patient && (!errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "left alone for 1h0m0s")) {
			t.Errorf("told to come back in an hour: %v", err)
		}
	}
}

// basic demands credentials of every caller.
func basic(user, password string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, _ := r.BasicAuth(); u == user && p == password {
			return false
		}
		w.Header().Set("Www-Authenticate", `Basic realm="here"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

func TestMirrorsGetNoCredentialsOfOthers(t *testing.T) {
	origin, mirror, s := newHub(t), newHub(t), newStore(t)
	img := imageOf(t, "", pack("gzip", file{"a", "1", 0}))
	origin.push(t, "team/app:1", img)
	mirror.push(t, "team/app:1", img)
	origin.hand(basic("me", "s3cret"))
	var offered string
	mirror.hand(func(w http.ResponseWriter, r *http.Request) bool {
		if a := r.Header.Get("Authorization"); a != "" {
			offered = a
		}
		return basic("me", "s3cret")(w, r)
	})
	writeHosts(t, s, "shop.example", fmt.Sprintf("server = %q\n[host.%q]\n", origin.URL, mirror.URL))
	auth := &Auth{Username: "me", Password: "s3cret"}
	ask := func() Explanation {
		t.Helper()
		if _, err := s.Pull(deadline(t), "shop.example/team/app:1", PullOptions{Auth: auth}); err != nil {
			t.Fatal(err)
		}
		e, err := s.Explain(deadline(t), "shop.example/team/app:1", auth)
		if err != nil || e.Error != nil || len(e.Hosts) != 2 || !e.Here || !e.Hosts[0].Mirror || e.Hosts[1].Mirror || e.HostsFile == "" {
			t.Fatalf("%+v, %v", e, err)
		}
		return e
	}
	e := ask()
	if offered != "" || e.Hosts[0].Credentials != "" || !errors.Is(e.Hosts[0].Error, ErrDenied) || !strings.Contains(e.Hosts[0].Error.Error(), "share_credentials") {
		t.Errorf("the mirror was offered %q; %+v", offered, e.Hosts[0])
	}
	if e.Hosts[1].Credentials != "the request" || e.Hosts[1].Error != nil || e.Hosts[1].Digest != digestOf(t, img) {
		t.Errorf("the registry: %+v", e.Hosts[1])
	}
	s.Share = []string{mirror.host()}
	if e := ask(); offered == "" || e.Hosts[0].Credentials != "the request" || e.Hosts[0].Error != nil {
		t.Errorf("a mirror that is to get them: %q, %+v", offered, e.Hosts[0])
	}
	for _, h := range e.Hosts {
		if strings.Contains(fmt.Sprintf("%+v", h), "s3cret") {
			t.Error("an explanation tells the password")
		}
	}
}

func TestCredentialHelper(t *testing.T) {
	h, s := newHub(t), newStore(t)
	ref := h.push(t, "team/app:1", imageOf(t, "", pack("gzip", file{"a", "1", 0})))
	h.hand(basic("me", "s3cret"))
	dir := t.TempDir()
	helper := "#!/bin/sh\nread host\n[ \"$1\" = get ] && [ \"$host\" = '" + h.host() + "' ] || { echo credentials not found in native keychain; exit 1; }\necho '{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"s3cret\"}'\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	s.AuthFiles = []string{filepath.Join(dir, "config.json")}
	for _, config := range []string{`{"credHelpers":{"` + h.host() + `":"test"}}`, `{"credsStore":"test"}`} {
		os.WriteFile(s.AuthFiles[0], []byte(config), 0o600)
		pull(t, s, ref)
		e, err := s.Explain(deadline(t), ref, nil)
		if err != nil || !strings.Contains(e.Hosts[0].Credentials, "config.json") || e.Hosts[0].Error != nil {
			t.Errorf("%s: %+v, %v", config, e, err)
		}
	}
	os.WriteFile(s.AuthFiles[0], []byte(`{"credHelpers":{"`+h.host()+`":"missing"}}`), 0o600)
	if _, err := s.Pull(deadline(t), ref, PullOptions{}); err == nil || !strings.Contains(err.Error(), "docker-credential-missing") {
		t.Errorf("a helper that is not there: %v", err)
	}
}

// certificate makes a self-signed one and returns its files.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "client.cert"), filepath.Join(dir, "client.key")
	os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
	os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600)
	return cert, key
}

// TestPrivateRegistry has it all: a private authority, a client certificate, and tokens.
func TestPrivateRegistry(t *testing.T) {
	plain, s := newHub(t), newStore(t)
	plain.push(t, "team/app:1", imageOf(t, "", pack("gzip", file{"a", "1", 0})))
	secure := httptest.NewUnstartedServer(plain)
	secure.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	secure.StartTLS()
	t.Cleanup(secure.Close)
	allow := func(r *http.Request) bool {
		user, password, _ := r.BasicAuth()
		return user == "me" && password == "s3cret"
	}
	tokens(plain, allow)
	front := plain.URL
	plain.URL = secure.URL // where the challenge sends the client
	t.Cleanup(func() { plain.URL = front })
	ca := filepath.Join(t.TempDir(), "ca.pem")
	os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o644)
	cert, key := certificate(t)
	writeHosts(t, s, "private.example", fmt.Sprintf("server = %q\nca = %q\nclient = [[%q, %q]]\n", secure.URL, ca, cert, key))
	auth := &Auth{Username: "me", Password: "s3cret"}
	if _, err := s.Pull(deadline(t), "private.example/team/app:1", PullOptions{Auth: auth}); err != nil {
		t.Fatal(err)
	}
	e, err := s.Explain(deadline(t), "private.example/team/app:1", auth)
	if err != nil || e.Hosts[0].Error != nil || e.Hosts[0].CA[0] != ca || e.Hosts[0].Client[0] != cert || e.Hosts[0].SkipVerify {
		t.Errorf("%+v, %v", e, err)
	}
	writeHosts(t, s, "private.example", fmt.Sprintf("server = %q\nca = %q\n", secure.URL, ca)) // read anew by the next pull
	if _, err := s.Pull(deadline(t), "private.example/team/app:1", PullOptions{Auth: auth}); err == nil {
		t.Error("a client without certificate got through")
	}
}

// TestDiskFullOnExt4 runs out of blocks and of inodes on a real file system.
// TestAFailedSyncIsEverybodys: the kernel tells one of two who sync that data were lost. What was unpacked before is published by
// nobody, and not shared with who comes later.
func TestAFailedSyncIsEverybodys(t *testing.T) {
	h, s := newHub(t), newStore(t)
	shared, own := pack("gzip", file{"shared", "1", 0}), pack("gzip", file{"b", "2", 0})
	one := h.push(t, "one:1", imageOf(t, "", shared))
	two := h.push(t, "two:1", imageOf(t, "", shared, own))
	blob := "/blobs/" + digest.FromBytes(shared.packed).String()
	slow := make(chan struct{})
	h.hand(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, digest.FromBytes(own.packed).String()) {
			<-slow
		}
		return false
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := s.Pull(deadline(t), two, PullOptions{}); err == nil || !strings.Contains(err.Error(), "pull once more") {
			t.Errorf("a pull that was under way: %v", err)
		}
	})
	for until(t, func() bool {
		s.unpacks.mu.Lock()
		fl := s.unpacks.running[digest.FromBytes(shared.plain)]
		s.unpacks.mu.Unlock()
		if fl == nil {
			return false
		}
		<-fl.done
		return true
	}) {
	}
	must(t, os.Rename(s.Root, s.Root+".away"))
	err := (&work{Store: s}).sync(t.Context())
	must(t, os.Rename(s.Root+".away", s.Root))
	if err == nil {
		t.Fatal("a store that is not there was synced")
	}
	h.forget()
	pull(t, s, one)
	if h.asked(blob) != 1 {
		t.Errorf("a later pull trusted the lost layer: %v", h.requests)
	}
	close(slow)
	wg.Wait()
	tidy(t, s, 1, 1)
	pull(t, s, two)
	tidy(t, s, 2, 2)
}

func TestDiskFullOnExt4(t *testing.T) {
	h := newHub(t)
	many := []file{}
	for i := range 3000 {
		many = append(many, file{fmt.Sprintf("f%d", i), "x", 0})
	}
	for what, c := range map[string]struct {
		options []string
		layer   testLayer
	}{
		"blocks": {nil, pack("zstd", file{"ok", noise(1, 1<<20), 0}, file{"big", noise(2, 60<<20), 0})},
		"inodes": {[]string{"-N", "512"}, pack("gzip", many...)},
	} {
		root := mountExt4(t, 48<<20, c.options...)
		s := &Store{Root: root, Lease: -1}
		reopen(t, s)
		t.Cleanup(s.Close)
		ref := h.push(t, what+":1", imageOf(t, "", c.layer, pack("gzip", file{"small", "1", 0})))
		if _, err := s.Pull(deadline(t), ref, PullOptions{}); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s: %v", what, err)
		}
		tidy(t, s, 0, 0)
		pull(t, s, h.push(t, "little:1", imageOf(t, "", pack("gzip", file{"a", noise(9, 200<<10), 0}))))
		s.Close()
	}
}

func mountExt4(t *testing.T, size int64, options ...string) string {
	t.Helper()
	dir := t.TempDir()
	image, root := filepath.Join(dir, "disk"), filepath.Join(dir, "root")
	os.Mkdir(root, 0o755)
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	os.Truncate(image, size)
	for _, command := range [][]string{append(append([]string{"mkfs.ext4", "-q", "-F"}, options...), image), {"mount", "-o", "loop", image, root}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v (run the tests as root: sudo make test): %v\n%s", command, err, out)
		}
	}
	t.Cleanup(func() {
		if err := exec.Command("umount", root).Run(); err != nil {
			t.Error(err)
		}
	})
	return root
}
