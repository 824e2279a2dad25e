package image

import (
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestEndpointsOfHostsFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		os.MkdirAll(filepath.Join(dir, name), 0o755)
		os.WriteFile(filepath.Join(dir, name, "hosts.toml"), []byte(text), 0o644)
	}
	write("docker.io", `
server = "https://upstream.example"
ca = "up.pem"

[host."https://zeta.example"]
  capabilities = ["pull"]
  ca = ["one.pem", "/abs/two.pem"]
  client = [["c.cert", "c.key"], ["both.pem", ""]]
  dial_timeout = "2s"
[host."https://zeta.example".header]
  x-one = "1"
  x-two = ["2", "3"]

[host."http://alpha.example:5000/some/path"]
  skip_verify = true

[host."https://beta.example/v2/proxy"]
  override_path = true
  client = "only.pem"
[host."mid.example/v2"]
`)
	write("named.example_5000_", `[host."https://a.example"]`)
	write("named.example:5000", `[host."https://never.example"]`)
	write("_default", "[host.\"http://cache.example\"]\ncapabilities = [\"pull\", \"resolve\"]\n")
	type row struct {
		at            string
		resolve, pull bool
	}
	for registry, want := range map[string][]row{
		"docker.io": {
			{"https://zeta.example/v2", false, true}, {"https://alpha.example:5000/some/path/v2", true, true},
			{"https://beta.example/v2/proxy", true, true}, {"https://mid.example/v2", true, true}, {"https://upstream.example/v2", true, true}},
		"named.example:5000": {{"https://a.example/v2", true, true}, {"https://named.example:5000/v2", true, true}},
		"quay.io":            {{"http://cache.example/v2", true, true}, {"https://quay.io/v2", true, true}},
	} {
		list, err := endpoints(dir, registry)
		if err != nil {
			t.Fatal(err)
		}
		var got []row
		for _, e := range list {
			got = append(got, row{e.scheme + "://" + e.host + e.path, e.resolve, e.pull})
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %v\nwant %v", registry, got, want)
		}
	}
	list, _ := endpoints(dir, "docker.io")
	base := filepath.Join(dir, "docker.io")
	zeta, alpha, beta := list[0], list[1], list[2]
	if !reflect.DeepEqual(zeta.ca, []string{base + "/one.pem", "/abs/two.pem"}) || zeta.dialTimeout != 2*time.Second ||
		!reflect.DeepEqual(zeta.client, [][2]string{{base + "/c.cert", base + "/c.key"}, {base + "/both.pem", ""}}) ||
		!reflect.DeepEqual(zeta.header, http.Header{"X-One": {"1"}, "X-Two": {"2", "3"}}) {
		t.Errorf("zeta %+v", zeta)
	}
	if !alpha.skipVerify || !alpha.guess || !reflect.DeepEqual(beta.client, [][2]string{{base + "/only.pem", ""}}) || list[4].ca[0] != base+"/up.pem" {
		t.Errorf("alpha %+v beta %+v server %+v", alpha, beta, list[4])
	}
}

func TestEndpointsWithoutConfiguration(t *testing.T) {
	for registry, want := range map[string]endpoint{
		"docker.io":       {scheme: "https", host: "registry-1.docker.io"},
		"quay.io":         {scheme: "https", host: "quay.io"},
		"localhost":       {scheme: "https", host: "localhost", skipVerify: true},
		"127.0.0.1:80":    {scheme: "http", host: "127.0.0.1:80"},
		"127.0.0.1:5000":  {scheme: "https", host: "127.0.0.1:5000", skipVerify: true, guess: true},
		"[::1]:5000":      {scheme: "https", host: "[::1]:5000", skipVerify: true, guess: true},
		"10.0.0.1:5000":   {scheme: "https", host: "10.0.0.1:5000"},
		"localhost.x:443": {scheme: "https", host: "localhost.x:443"},
	} {
		want.path, want.resolve, want.pull, want.own = "/v2", true, true, true
		list, err := endpoints(t.TempDir(), registry)
		if err != nil || len(list) != 1 || !reflect.DeepEqual(list[0], want) {
			t.Errorf("%s: %+v %v", registry, list, err)
		}
	}
}

func TestBadHostsFileIsAnErrorThatNamesIt(t *testing.T) {
	for text, want := range map[string]string{
		"server = ":        "hosts.toml",
		`[host."ftp://x"]`: "must be http",
		"server = \"https://x\"\ncapabilities = [\"fly\"]": "unknown capability",
		"ca = 5":                         "ca:",
		"client = [[\"a\",\"b\",\"c\"]]": "client:",
		"dial_timeout = \"soon\"":        "dial_timeout",
		"[header]\nx = 5":                "header",
	} {
		s := newStore(t)
		writeHosts(t, s, "quay.io", text)
		if _, err := s.Pull(deadline(t), "quay.io/a", PullOptions{}); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), s.HostsDir) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestMirrorsAreTriedInOrder(t *testing.T) {
	mirror, origin, s := newHub(t), newHub(t), newStore(t)
	made := imageOf(t, "", pack("gzip", file{"a", noise(1, 100<<10), 0}))
	mirror.push(t, "team/app:1", made)
	origin.push(t, "team/app:1", made)
	config := func(capabilities string) {
		writeHosts(t, s, "_default", fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [%s]\n", origin.URL, mirror.URL, capabilities))
	}
	again := func() (*Image, error) {
		s.Remove(deadline(t), "example.com/team/app:1")
		mirror.forget()
		origin.forget()
		return s.Pull(deadline(t), "example.com/team/app:1", PullOptions{})
	}
	var ns string
	mirror.hand(func(_ http.ResponseWriter, r *http.Request) bool { ns = r.URL.Query().Get("ns"); return false })
	config(`"pull", "resolve"`)
	if _, err := again(); err != nil || origin.asked("") != 0 || mirror.asked("/manifests/1") != 1 || ns != "example.com" {
		t.Errorf("all from the mirror: %v, origin was asked %v, ns=%s", err, origin.requests, ns)
	}
	config(`"pull"`) // read anew, no restart
	if _, err := again(); err != nil || origin.asked("HEAD") != 1 || origin.asked("GET") != 0 || mirror.asked("HEAD") != 0 || mirror.asked("/blobs/") != 2 {
		t.Errorf("only content from the mirror: %v, origin %v, mirror %v", err, origin.requests, mirror.requests)
	}
	config(`"resolve"`)
	if _, err := again(); err != nil || origin.asked("/blobs/") != 2 || mirror.asked("GET") != 0 {
		t.Errorf("only names from the mirror: %v, origin %v, mirror %v", err, origin.requests, mirror.requests)
	}
	config(`"pull", "resolve"`)
	for _, code := range []int{401, 404, 500} {
		mirror.hand(status("/v2/", code))
		if _, err := again(); err != nil || origin.asked("/blobs/") != 2 {
			t.Errorf("mirror says %d: %v, origin %v", code, err, origin.requests)
		}
	}
	garbled := []byte(noise(2, 500))
	mirror.hand(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			w.Write(garbled)
		}
		return strings.Contains(r.URL.Path, "/blobs/")
	})
	if img, err := again(); err != nil || content(t, img, 0, "a") != noise(1, 100<<10) {
		t.Errorf("mirror with garbled blobs: %v", err)
	}
	mirror.Server.Close()
	if _, err := again(); err != nil {
		t.Errorf("mirror down: %v", err)
	}
	origin.hand(status("/v2/", 404))
	_, err := again()
	if !errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), mirror.host()+": ") || !strings.Contains(err.Error(), origin.host()+": 404") {
		t.Errorf("all fail: %v", err)
	}
	origin.hand(status("/v2/", 503))
	if _, err = again(); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNotFound) {
		t.Errorf("all unavailable: %v", err)
	}
	tidy(t, s, 0, 0)
}

func TestPullOverTLS(t *testing.T) {
	plain, s := newHub(t), newStore(t)
	plain.push(t, "app:1", imageOf(t, "", pack("gzip", file{"a", "1", 0})))
	secure := httptest.NewTLSServer(plain)
	t.Cleanup(secure.Close)
	host := strings.TrimPrefix(secure.URL, "https://")
	pull(t, s, host+"/app:1") // loopback: https is tried first, the certificate not checked
	ca := filepath.Join(t.TempDir(), "ca.pem")
	os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o644)
	config := func(more string) error {
		writeHosts(t, s, "tls.example", fmt.Sprintf("server = %q\n%s\n", secure.URL, more))
		_, err := s.Pull(deadline(t), "tls.example/app:1", PullOptions{})
		return err
	}
	if err := config(""); err == nil || errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "hosts.toml (ca)") {
		t.Errorf("unknown authority: %v", err)
	}
	for _, more := range []string{fmt.Sprintf("ca = %q", ca), "skip_verify = true"} {
		if err := config(more); err != nil {
			t.Errorf("%s: %v", more, err)
		}
	}
	if err := config(`ca = "missing.pem"`); err == nil || !strings.Contains(err.Error(), "missing.pem") {
		t.Errorf("missing ca: %v", err)
	}
	secure.TLS.ClientAuth = tls.RequireAnyClientCert
	if err := config("skip_verify = true"); err == nil {
		t.Error("a server that wants a certificate was satisfied without")
	}
}

func TestBasicCredentials(t *testing.T) {
	h, s := newHub(t), newStore(t)
	ref := h.push(t, "team/app:1", imageOf(t, "", pack("gzip", file{"a", "1", 0})))
	h.hand(func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, _ := r.BasicAuth(); user == "me" && password == "s3cret" {
			return false
		}
		w.Header().Set("Www-Authenticate", `Basic realm="here"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	checkDenied := func(a *Auth) {
		t.Helper()
		_, err := s.Pull(deadline(t), ref, PullOptions{Auth: a})
		if !errors.Is(err, ErrDenied) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("got %v", err)
		}
	}
	checkDenied(nil)
	checkDenied(&Auth{Username: "me", Password: "wrong s3cret"})
	checkDenied(&Auth{IdentityToken: "of no use here s3cret"})
	if _, err := s.Pull(deadline(t), ref, PullOptions{Auth: &Auth{Username: "me", Password: "s3cret"}}); err != nil {
		t.Error(err)
	}
	checkDenied(nil) // that it is here does not mean that everybody may have it
	files := t.TempDir()
	s.AuthFiles = []string{filepath.Join(files, "missing.json"), filepath.Join(files, "config.json")}
	for _, key := range []string{h.host(), h.host() + "/team", "http://" + h.host()} {
		text, _ := json.Marshal(map[string]any{"auths": map[string]any{key: map[string]string{"username": "me", "password": "s3cret"}}})
		os.WriteFile(s.AuthFiles[1], text, 0o600)
		pull(t, s, ref)
	}
	os.WriteFile(s.AuthFiles[1], []byte("{"), 0o600)
	if _, err := s.Pull(deadline(t), ref, PullOptions{}); err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("damaged config.json: %v", err)
	}
}

// TestAuthPatterns has the examples of https://kubernetes.io/docs/concepts/containers/images/#config-json.
func TestAuthPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, target string
		want            bool
	}{
		{"*.kubernetes.io", "abc.kubernetes.io/app", true},
		{"*.kubernetes.io", "kubernetes.io/app", false},
		{"*.*.kubernetes.io", "abc.kubernetes.io/app", false},
		{"*.*.kubernetes.io", "abc.def.kubernetes.io/app", true},
		{"prefix.*.io", "prefix.kubernetes.io/app", true},
		{"*-good.kubernetes.io", "prefix-good.kubernetes.io/app", true},
		{"*.io", "abc.kubernetes.io/app", false},
		{"https://*.example.com/v1/", "a.example.com/app", true},
		{"*.example.com/team", "a.example.com/team/app", true},
		{"*.example.com/team", "a.example.com/other/app", false},
		{"*.example.com:5000", "a.example.com:5000/app", true},
		{"*.example.com", "a.example.com:5000/app", false},
		{"*.example.com:5000", "a.example.com/app", false},
		{"*.example.com/team", "a.example.com", false},
		{"reg[0-9].example.com", "reg7.example.com/app", true},
		{"reg?.example.com", "reg77.example.com/app", false},
		{"[.example.com", "[.example.com/app", false},
	} {
		if got := matchAuth(c.pattern, c.target); got != c.want {
			t.Errorf("%s matches %s: %v", c.pattern, c.target, got)
		}
	}
	file := filepath.Join(t.TempDir(), "config.json")
	must(t, os.WriteFile(file, []byte(`{"auths":{
		"*.example.com": {"username":"any","password":"x"}, "*.example.com/team": {"username":"team","password":"x"},
		"b.example.com": {"username":"b","password":"x"}}}`), 0o600))
	s := &Store{AuthFiles: []string{file}}
	for name, want := range map[string]string{
		"a.example.com/app": "any", "a.example.com/team/app": "team", "b.example.com/app": "b", "a.b.example.com/app": "", "example.com/app": "",
	} {
		ref, err := ParseReference(name)
		must(t, err)
		got, source, err := s.credential(t.Context(), ownHost(ref.Registry), ref, nil)
		if err != nil || got.Username != want || (want == "any") != strings.Contains(source, "(*.example.com)") {
			t.Errorf("%s: %q from %s, %v; want %q", name, got.Username, source, err, want)
		}
	}
	ref, _ := ParseReference("docker.io/team/app")
	if got, _, _ := s.credential(t.Context(), endpoint{scheme: "https", host: "mirror.example.com"}, ref, nil); got.Username != "any" {
		t.Errorf("a mirror: %q", got.Username)
	}
}

// tokens puts a token server before the hub: it hands out tokens for the scope that was asked for.
func tokens(h *hub, allow func(*http.Request) bool) {
	h.hand(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			r.ParseForm()
			if !allow(r) || r.Form.Get("service") != "hub" || r.Form.Get("scope") != "repository:team/app:pull" {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			fmt.Fprint(w, `{"token":"good","access_token":"good"}`)
			return true
		}
		if r.Header.Get("Authorization") == "Bearer good" {
			return false
		}
		w.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="hub",scope="repository:team/app:pull"`, h.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
}

func TestTokenCredentials(t *testing.T) {
	h := newHub(t)
	ref := h.push(t, "team/app:1", imageOf(t, "", pack("gzip", file{"a", "1", 0}), pack("gzip", file{"b", "1", 0})))
	basic := func(r *http.Request) bool {
		user, password, _ := r.BasicAuth()
		return user == "me" && password == "s3cret"
	}
	refresh := func(r *http.Request) bool { return r.Form.Get("refresh_token") == "identity" }
	for name, c := range map[string]struct {
		allow func(*http.Request) bool
		auth  *Auth
		ok    bool
	}{
		"anonymous":         {func(*http.Request) bool { return true }, nil, true},
		"password":          {basic, &Auth{Username: "me", Password: "s3cret"}, true},
		"wrong password":    {basic, &Auth{Username: "me", Password: "oh s3cret"}, false},
		"nothing":           {basic, nil, false},
		"identity token":    {refresh, &Auth{IdentityToken: "identity"}, true},
		"registry token":    {func(*http.Request) bool { return false }, &Auth{RegistryToken: "good"}, true},
		"no registry token": {func(*http.Request) bool { return false }, &Auth{RegistryToken: "bad s3cret"}, false},
	} {
		s := newStore(t)
		tokens(h, c.allow)
		h.forget()
		_, err := s.Pull(deadline(t), ref, PullOptions{Auth: c.auth})
		if c.ok && (err != nil || h.asked("/token") > 1) {
			t.Errorf("%s: %v after %v", name, err, h.requests)
		}
		if !c.ok && (!errors.Is(err, ErrDenied) || strings.Contains(err.Error(), "s3cret")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestALostHostIsNoMissingBlob: the one host that has a blob breaks off, and the other says that it has none. That is no image that
// does not exist.
func TestALostHostIsNoMissingBlob(t *testing.T) {
	l := pack("", file{"big", noise(2, 1<<20), 0})
	blob := digest.FromBytes(l.packed)
	type hand = func(w http.ResponseWriter, r *http.Request) bool
	start := func(t *testing.T) (*hub, *Store) {
		t.Parallel()
		h, other, s := newHub(t), newHub(t), newStore(t)
		h.push(t, "library/app:1", imageOf(t, "", l))
		other.hand(status("/", 404))
		writeHosts(t, s, "docker.io", fmt.Sprintf("server = %q\n[host.%q]\n", other.URL, h.URL))
		s.patience = 200 * time.Millisecond
		return h, s
	}
	// after hands out a part of the blob, and then what each further request for the rest gets.
	after := func(h *hub, rest func(n int) hand) hand {
		cut, n := cutter(h, 300<<10), 0
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, blob.String()) {
				return false
			}
			if n++; n == 1 { // requests come one after the other
				return cut(w, r)
			}
			return rest(n)(w, r)
		}
	}
	silent := func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Range", strings.Replace(r.Header.Get("Range"), "=", " ", 1)+fmt.Sprintf("/%d", len(l.packed)))
		w.WriteHeader(http.StatusPartialContent)
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return true
	}
	for what, c := range map[string]struct {
		lost func(*hub) hand
		till int // requests, the first of which gave a part
	}{
		"breaks off without a byte": {func(h *hub) hand { return cutter(h, 0) }, 3},   // which passes it over
		"is down":                   {func(*hub) hand { return status("/", 503) }, 4}, // after three tries of one request
		"falls silent":              {func(*hub) hand { return silent }, 2},
	} {
		t.Run(what, func(t *testing.T) {
			h, s := start(t)
			h.hand(after(h, func(int) hand { return c.lost(h) }))
			if _, err := s.Pull(deadline(t), "app:1", PullOptions{}); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNotFound) {
				t.Errorf("for good: %v", err)
			}
			tidy(t, s, 0, 0)
			h.hand(after(h, func(n int) hand {
				if n > c.till {
					return func(http.ResponseWriter, *http.Request) bool { return false }
				}
				return c.lost(h)
			}))
			pull(t, s, "app:1")
		})
	}
	t.Run("has wrong content", func(t *testing.T) {
		h, s := start(t)
		h.hand(swap(blob, []byte(noise(3, len(l.packed)))))
		if _, err := s.Pull(deadline(t), "app:1", PullOptions{}); !errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNotFound) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("has lost it", func(t *testing.T) {
		h, s := start(t)
		h.hand(after(h, func(int) hand { return status("/", 404) }))
		if _, err := s.Pull(deadline(t), "app:1", PullOptions{}); !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v", err)
		}
	})
}

// TestHeadersStayWithTheirHost: neither the token server nor the place of the blobs that a host names get what hosts.toml has for it.
func TestHeadersStayWithTheirHost(t *testing.T) {
	h, s := newHub(t), newStore(t)
	h.push(t, "library/app:1", imageOf(t, "", pack("gzip", file{"a", "1", 0})))
	var mu sync.Mutex
	elsewhere := map[string]bool{}
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		elsewhere[r.URL.Path] = true
		mu.Unlock()
		if r.Header.Get("X-Api-Key") != "" || r.UserAgent() != "evenkeel" {
			t.Errorf("%s got %v", r.URL, r.Header)
		}
		if r.URL.Path == "/token" {
			fmt.Fprint(w, `{"token":"good"}`)
			return
		}
		h.inner.ServeHTTP(w, r)
	}))
	t.Cleanup(other.Close)
	h.hand(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("X-Api-Key") != "s3cret" {
			t.Errorf("%s without its header", r.URL)
		}
		if r.Header.Get("Authorization") != "Bearer good" {
			w.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="hub"`, other.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	writeHosts(t, s, "docker.io", fmt.Sprintf("server = %q\n[header]\nx-api-key = \"s3cret\"\n", h.URL))
	pull(t, s, "docker.io/library/app:1")
	mu.Lock()
	defer mu.Unlock()
	if !elsewhere["/token"] || len(elsewhere) != 3 { // the config and the layer
		t.Errorf("asked elsewhere: %v", elsewhere)
	}
}

func TestOrigin(t *testing.T) {
	for _, c := range []struct {
		endpoint endpoint
		url      string
		want     bool
	}{
		{endpoint{scheme: "https", host: "a.example"}, "https://A.example:443/x", true},
		{endpoint{scheme: "https", host: "a.example:443"}, "https://a.example/x", true},
		{endpoint{scheme: "https", host: "a.example"}, "http://a.example/x", false},
		{endpoint{scheme: "https", host: "a.example"}, "http://a.example:443/x", false},
		{endpoint{scheme: "https", host: "a.example"}, "https://a.example:8443/x", false},
		{endpoint{scheme: "https", host: "a.example"}, "https://b.a.example/x", false},
		{endpoint{scheme: "https", host: "[::1]:5000", guess: true}, "http://[::1]:5000/x", true},
		{endpoint{scheme: "https", host: "[::1]:5000", guess: true}, "http://[::1]/x", false},
	} {
		u, err := url.Parse(c.url)
		if err != nil {
			t.Fatal(err)
		}
		if c.endpoint.origin(u) != c.want {
			t.Errorf("%+v and %s: want %v", c.endpoint, c.url, c.want)
		}
	}
}

func TestRedirectDoesNotLeakIntoErrors(t *testing.T) {
	h, s := newHub(t), newStore(t)
	ref := h.push(t, "app:1", imageOf(t, "", pack("gzip", file{"a", "1", 0})))
	h.hand(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		http.Redirect(w, r, "http://127.0.0.1:1/storage?X-Signature=s3cret", http.StatusTemporaryRedirect)
		return true
	})
	if _, err := s.Pull(deadline(t), ref, PullOptions{}); !errors.Is(err, ErrUnavailable) || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got %v", err)
	}
}
