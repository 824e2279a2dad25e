package integration

import (
	"runtime"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/integration/registry"
)

func (n *node) imageStatus(ref string) *cri.Image {
	n.t.Helper()
	r, err := n.Images.ImageStatus(n.ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
	must(n.t, err)
	return r.Image
}

func TestLifeOfAnImage(t *testing.T) {
	n := start(t, "builtin")
	ref := image(t, "life", v1.Config{User: "1000:1000", Cmd: []string{"sh"}}, registry.File{Name: "etc/x", Mode: 0o644, Content: []byte("x")})
	id := n.pull(ref)
	img := n.imageStatus(ref)
	if img.GetId() != id || len(img.RepoTags) != 1 || img.RepoTags[0] != ref || len(img.RepoDigests) != 1 || img.Size == 0 {
		t.Fatalf("status after the pull: %v", img)
	}
	if img.Uid.GetValue() != 1000 || img.Username != "" {
		t.Errorf("a numeric USER gives uid %v username %q", img.Uid, img.Username)
	}
	for _, other := range []string{id, id[len("sha256:"):][:12], img.RepoDigests[0]} {
		if got := n.imageStatus(other); got.GetId() != id {
			t.Errorf("%s is not found", other)
		}
	}
	if again := n.pull(img.RepoDigests[0]); again != id {
		t.Errorf("the pull by digest answers %s, want %s", again, id)
	}
	list, err := n.Images.ListImages(n.ctx(), &cri.ListImagesRequest{})
	must(t, err)
	if len(list.Images) != 2 {
		t.Errorf("%d images are listed, want busybox and this one", len(list.Images))
	}
	fs, err := n.Images.ImageFsInfo(n.ctx(), &cri.ImageFsInfoRequest{})
	must(t, err)
	if len(fs.ImageFilesystems) != 1 || fs.ImageFilesystems[0].FsId.GetMountpoint() == "" || fs.ImageFilesystems[0].UsedBytes.GetValue() == 0 {
		t.Errorf("ImageFsInfo: %v", fs)
	}
	must(t, n.Restart())
	if got := n.imageStatus(ref); got.GetId() != id {
		t.Errorf("the image is gone after a restart")
	}
	for range 2 {
		_, err = n.Images.RemoveImage(n.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}})
		must(t, err)
	}
	if got := n.imageStatus(id); got != nil {
		t.Errorf("a removed image is still there: %v", got)
	}
}

func TestIndexPicksThisMachinesImage(t *testing.T) {
	n := start(t, "builtin")
	files, err := registry.BusyboxFiles()
	must(t, err)
	layer, err := registry.Layer(files...)
	must(t, err)
	build := func(arch string, code string) registry.For {
		p := v1.Platform{OS: "linux", Architecture: arch}
		img, err := registry.ImageFor(p, v1.Config{Cmd: []string{"sh", "-c", "exit " + code}, Env: []string{"PATH=/bin"}}, layer)
		must(t, err)
		return registry.For{Platform: p, Image: img}
	}
	ref, err := images.Push("index", registry.Index(build("s390x", "1"), build(runtime.GOARCH, "42"), build("ppc64le", "2")))
	must(t, err)
	n.pull(ref)
	cfg := n.Pod("index")
	pod := n.runPod(cfg)
	c := engine.Container("main", ref)
	c.Command = nil
	id := n.run(pod, cfg, c)
	if s := n.awaitState(id, cri.ContainerState_CONTAINER_EXITED); s.ExitCode != 42 {
		t.Errorf("exit code %d: another architecture's image ran", s.ExitCode)
	}
}

// TestImageInUseOutlivesItsRemoval: the kubelet's image GC races with starting pods.
func TestImageInUseOutlivesItsRemoval(t *testing.T) {
	n := start(t, "builtin")
	_, id := n.up("user")
	_, err := n.Images.RemoveImage(n.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: busybox}})
	must(t, err)
	n.output(id, "cat", "/etc/passwd")
	must(t, n.Restart())
	n.output(id, "cat", "/etc/group")
	n.pull(busybox)
	n.output(id, "cat", "/etc/passwd")
}

func TestMirror(t *testing.T) {
	n := start(t, "builtin")
	mirrored := registry.Serve()
	defer mirrored.Close()
	img, err := registry.Busybox()
	must(t, err)
	_, err = mirrored.Push("team/app:1", img)
	must(t, err)
	must(t, mirrored.Mirror(n.HostsDir(), "registry.example.org"))
	n.pull("registry.example.org/team/app:1")
	if got := n.imageStatus("registry.example.org/team/app:1"); !slices.Contains(got.GetRepoTags(), "registry.example.org/team/app:1") {
		t.Errorf("an image from a mirror is called %v", got)
	}
	must(t, mirrored.Mirror(n.HostsDir(), "_default"))
	n.pull("another.example.org/team/app:1")
}

func TestCredentials(t *testing.T) {
	n := start(t, "builtin")
	closed := registry.Serve()
	defer closed.Close()
	img, err := registry.Busybox()
	must(t, err)
	ref, err := closed.Push("secret:1", img)
	must(t, err)
	must(t, closed.Hosts(n.HostsDir()))
	closed.Demand("user", "password")
	_, err = n.Images.PullImage(n.ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	refused(t, err, codes.PermissionDenied, ref)
	_, err = n.Images.PullImage(n.ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}, Auth: &cri.AuthConfig{Username: "user", Password: "password"}})
	must(t, err)
}
