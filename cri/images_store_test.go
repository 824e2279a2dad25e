package cri

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criapi "k8s.io/cri-api/pkg/apis"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"

	"github.com/evenkeel/evenkeel/cri/operator"
	"github.com/evenkeel/evenkeel/image"
)

// withImages is an engine with a real store, and the kubelet's client of it.
func withImages(t *testing.T) (*Server, string, criapi.ImageManagerService) {
	t.Helper()
	s := engine()
	s.Images = &image.Store{Root: t.TempDir()}
	if err := s.Images.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Images.Close)
	address := serve(t, s)
	client, err := criclient.NewRemoteImageService(t.Context(), address, 5*time.Second, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	return s, address, client
}

// randomImage is an image for this machine, with three layers of noise, that runs as user.
func randomImage(t *testing.T, user string) v1.Image {
	t.Helper()
	img, err := random.Image(10_000, 3)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config.User = "linux", runtime.GOARCH, user
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	return img
}

// push serves img as web:1 in a registry of its own, behind guard, and returns the reference.
func push(t *testing.T, img v1.Image, guard func(http.Handler) http.Handler) string {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	open := httptest.NewServer(inner)
	t.Cleanup(open.Close)
	ref, err := name.ParseReference(strings.TrimPrefix(open.URL, "http://") + "/shop/web:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	if guard == nil {
		return ref.Name()
	}
	guarded := httptest.NewServer(guard(inner))
	t.Cleanup(guarded.Close)
	return strings.TrimPrefix(guarded.URL, "http://") + "/shop/web:1"
}

func spec(ref string) *cri.ImageSpec { return &cri.ImageSpec{Image: ref} }

func idOf(t *testing.T, img v1.Image) string {
	t.Helper()
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

func TestAnImageIsPulledSeenAndRemoved(t *testing.T) {
	s, _, client := withImages(t)
	ctx := t.Context()
	img := randomImage(t, "1000:1000")
	ref, id := push(t, img, nil), idOf(t, img)

	if got, err := client.ImageStatus(ctx, spec(ref), false); err != nil || got.Image != nil {
		t.Fatalf("before the pull: %v, %v", got, err)
	}
	if got, err := client.PullImage(ctx, spec(ref), nil, nil); err != nil || got != id {
		t.Fatalf("pull: %q, %v; want %s", got, err, id)
	}
	for _, asked := range []string{ref, id, strings.TrimPrefix(id, "sha256:"), strings.TrimPrefix(id, "sha256:")[:12]} {
		got, err := client.ImageStatus(ctx, spec(asked), true)
		if err != nil || got.Image.GetId() != id || got.Image.Size == 0 || got.Image.Uid.GetValue() != 1000 || got.Image.Username != "" {
			t.Errorf("status of %s: %v, %v", asked, got, err)
		}
		if !strings.Contains(got.Info["info"], `"User":"1000:1000"`) {
			t.Errorf("verbose status lacks the config: %v", got.Info)
		}
	}
	if got, err := client.ListImages(ctx, nil); err != nil || len(got) != 1 || got[0].RepoTags[0] != ref {
		t.Errorf("list: %v, %v", got, err)
	}
	if got, err := client.ListImages(ctx, &cri.ImageFilter{Image: spec("localhost/other:1")}); err != nil || len(got) != 0 {
		t.Errorf("list of another image: %v, %v", got, err)
	}
	if got, err := client.ListImages(ctx, &cri.ImageFilter{Image: spec("Foo")}); err != nil || len(got) != 0 {
		t.Errorf("list of what is no name: %v, %v", got, err)
	}
	checkFsInfo(t, s, client)
	for range 2 { // the second is about an image that is gone
		if err := client.RemoveImage(ctx, spec(ref)); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if got, err := client.ListImages(ctx, &cri.ImageFilter{Image: spec(id)}); err != nil || len(got) != 0 {
		t.Errorf("list after removal: %v, %v", got, err)
	}
}

func checkFsInfo(t *testing.T, s *Server, client criapi.ImageManagerService) {
	t.Helper()
	got, err := client.ImageFsInfo(t.Context())
	if err != nil || len(got.ImageFilesystems) != 1 || len(got.ContainerFilesystems) != 1 {
		t.Fatalf("ImageFsInfo: %v, %v", got, err)
	}
	fs := got.ImageFilesystems[0]
	if fs.FsId.Mountpoint != s.Images.Root || fs.UsedBytes.GetValue() < 30_000 || fs.InodesUsed.GetValue() == 0 || time.Since(time.Unix(0, fs.Timestamp)) > time.Minute {
		t.Errorf("ImageFsInfo: %v", fs)
	}
	if _, err := os.Stat(fs.FsId.Mountpoint); err != nil {
		t.Errorf("the kubelet cannot find the file system: %v", err)
	}
}

func TestStreamImagesGivesWhatListGives(t *testing.T) {
	s, address, client := withImages(t)
	for range 3 {
		if _, err := client.PullImage(t.Context(), spec(push(t, randomImage(t, ""), nil)), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	streaming, err := criclient.NewRemoteImageService(t.Context(), address, 5*time.Second, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	got, err := streaming.ListImages(t.Context(), nil)
	if err != nil || len(got) != len(s.Images.List()) || len(got) != 3 {
		t.Errorf("%d images, %v", len(got), err)
	}
}

func TestPullErrors(t *testing.T) {
	_, _, client := withImages(t)
	ref := push(t, randomImage(t, ""), nil)
	refuse := func(code int) func(http.Handler) http.Handler {
		return func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
		}
	}
	for what, c := range map[string]struct {
		ref  string
		want codes.Code
	}{
		"malformed":         {"UPPER//case", codes.InvalidArgument},
		"missing tag":       {strings.Replace(ref, ":1", ":2", 1), codes.NotFound},
		"registry denies":   {push(t, randomImage(t, ""), refuse(http.StatusForbidden)), codes.PermissionDenied},
		"registry is down":  {push(t, randomImage(t, ""), refuse(http.StatusServiceUnavailable)), codes.Unknown},
		"nobody is at home": {"127.0.0.1:1/web:1", codes.Unknown},
	} {
		_, err := client.PullImage(t.Context(), spec(c.ref), nil, nil)
		if err == nil {
			t.Errorf("%s: no error", what)
			continue
		}
		// the kubelet's client unwraps Unknown, and the kubelet then reads how the message starts
		if c.want == codes.Unknown {
			if !strings.HasPrefix(err.Error(), "RegistryUnavailable: ") {
				t.Errorf("%s: %v", what, err)
			}
		} else if status.Code(err) != c.want {
			t.Errorf("%s: %v, want %s", what, err, c.want)
		}
	}
}

func TestCredentialsReachTheRegistry(t *testing.T) {
	_, _, client := withImages(t)
	img := randomImage(t, "")
	ref := push(t, img, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, password, _ := r.BasicAuth(); user != "me" || password != "s3cret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="shop"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	_, err := client.PullImage(t.Context(), spec(ref), nil, nil)
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("without credentials: %v", err)
	}
	_, err = client.PullImage(t.Context(), spec(ref), &cri.AuthConfig{Username: "me", Password: "wr0ng"}, nil)
	if status.Code(err) != codes.PermissionDenied || strings.Contains(err.Error(), "wr0ng") {
		t.Errorf("with a wrong password: %v", err)
	}
	got, err := client.PullImage(t.Context(), spec(ref), &cri.AuthConfig{Auth: "bWU6czNjcmV0"}, nil)
	if err != nil || got != idOf(t, img) {
		t.Errorf("with credentials: %q, %v", got, err)
	}
}

func TestOperatorPullsAndImports(t *testing.T) {
	s, address, _ := withImages(t)
	client := operator.Client{Conn: dial(t, address)}
	img := randomImage(t, "")
	ref := push(t, img, nil)
	last := map[string]operator.Progress{}
	result, err := client.Pull(t.Context(), operator.PullRequest{Image: ref, Platform: "linux/" + runtime.GOARCH}, func(p operator.Progress) { last[p.Layer] = p })
	if err != nil || len(result.Images) != 1 || result.Images[0].ID != idOf(t, img) || result.Images[0].Size == 0 {
		t.Fatalf("pull: %+v, %v", result, err)
	}
	for layer, p := range last {
		if p.Phase != "done" && p.Phase != "exists" {
			t.Errorf("layer %s was last seen as %+v", layer, p)
		}
	}
	if len(last) != 3 {
		t.Errorf("heard of %d layers", len(last))
	}

	other := randomImage(t, "")
	tag, err := name.NewTag("localhost/imported:1")
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(tarball.Write(tag, other, w)) }()
	result, err = client.Import(t.Context(), r, nil)
	if err != nil || len(result.Images) != 1 || result.Images[0].ID != idOf(t, other) {
		t.Fatalf("import: %+v, %v", result, err)
	}
	if _, err := s.Images.Get("localhost/imported:1"); err != nil {
		t.Error(err)
	}
}

func TestOperatorErrorsHaveCodes(t *testing.T) {
	_, address, _ := withImages(t)
	client := operator.Client{Conn: dial(t, address)}
	for what, c := range map[string]struct {
		req  operator.PullRequest
		want codes.Code
	}{
		"no image":     {operator.PullRequest{}, codes.InvalidArgument},
		"bad platform": {operator.PullRequest{Image: "web", Platform: "arm64"}, codes.InvalidArgument},
		"nobody home":  {operator.PullRequest{Image: "127.0.0.1:1/web:1"}, codes.Unknown},
	} {
		if _, err := client.Pull(t.Context(), c.req, nil); status.Code(err) != c.want {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := client.Import(t.Context(), strings.NewReader("this is no archive"), nil); err == nil || status.Code(err) == codes.OK {
		t.Errorf("import of rubbish: %v", err)
	}
}
