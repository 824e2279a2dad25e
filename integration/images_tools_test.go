package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/integration/registry"
)

// evenkeel runs the command line against the node.
func (n *node) evenkeel(args ...string) (string, error) {
	n.t.Helper()
	c := exec.CommandContext(n.ctx(), filepath.Join(bin, "evenkeel"), args...)
	c.Env = append(os.Environ(), "EVENKEEL_ADDRESS=unix://"+n.Socket())
	out, err := c.CombinedOutput()
	return string(out), err
}

func (n *node) says(want string, args ...string) {
	n.t.Helper()
	if out, err := n.evenkeel(args...); err != nil || !strings.Contains(out, want) {
		n.t.Errorf("evenkeel %v: %v, want %q in:\n%s", args, err, want, out)
	}
}

func TestImageTools(t *testing.T) {
	n := start(t, "builtin")
	ref := image(t, "tools", v1.Config{Cmd: []string{"sh"}}, registry.File{Name: "etc/precious", Mode: 0o644, Content: []byte("precious content")})
	id := n.pull(ref)
	n.says("SHARED", "images")
	n.says("registry for resolve and pull", "images", "explain", ref)
	n.says("0 damaged", "fsck")

	file, err := findLayerFile(n.Root(), "etc/precious")
	must(t, err)
	must(t, os.WriteFile(file, []byte("worthless content"), 0o644))
	if out, err := n.evenkeel("fsck"); err == nil || !strings.Contains(out, "1 damaged") || !strings.Contains(out, ref) {
		t.Errorf("fsck of a damaged store: %v\n%s", err, out)
	}
	if n.imageStatus(ref) != nil {
		t.Error("a damaged image is listed")
	}
	if out, err := n.evenkeel("export", ref, "--to", filepath.Join(t.TempDir(), "a.tar")); err == nil || !strings.Contains(out, "fsck --repair") {
		t.Errorf("export of a damaged image: %v\n%s", err, out)
	}
	n.says("0 damaged", "fsck", "--repair")
	if n.imageStatus(ref).GetId() != id {
		t.Error("the image was not repaired")
	}

	archive := filepath.Join(t.TempDir(), "a.tar.zst")
	n.says(id, "export", ref, "--to", archive, "--compress", "zstd", "--output", "json")
	if out, err := n.evenkeel("export", ref, "--output", "json"); err == nil || !strings.Contains(out, "--to") || len(out) > 1000 {
		t.Errorf("an archive and a list, both on standard output: %v, %d bytes", err, len(out))
	}
	_, err = n.Images.RemoveImage(n.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}})
	must(t, err)
	n.says(id[len("sha256:"):][:12], "import", archive)
	if n.imageStatus(ref).GetId() != id {
		t.Error("the image has another id after export and import")
	}

	file, err = findLayerFile(n.Root(), "etc/precious")
	must(t, err)
	must(t, os.WriteFile(file, []byte("worthless content"), 0o644))
	if _, err := n.evenkeel("fsck"); err == nil {
		t.Error("fsck finds no damage")
	}
	n.says(id, "rmi", ref, "--output", "json")
	n.says("0 damaged", "fsck")
	if out, err := n.evenkeel("rmi", ref); err == nil || !strings.Contains(out, "there is no image") {
		t.Errorf("removed twice: %v\n%s", err, out)
	}
}

func findLayerFile(root, name string) (string, error) {
	found, err := filepath.Glob(filepath.Join(root, "images/layers/*/fs", name))
	if err != nil || len(found) == 0 {
		return "", os.ErrNotExist
	}
	return found[0], nil
}

// TestFsckNamesThePods: whoever stands on a damaged layer is named, by its root or by an image volume, also when the image
// has been removed; who does not, or has ended, is not.
func TestFsckNamesThePods(t *testing.T) {
	n := start(t, "builtin")
	files, err := registry.BusyboxFiles()
	must(t, err)
	precious := registry.File{Name: "etc/precious", Mode: 0o644, Content: []byte("precious content")}
	ref := image(t, "fsckpods", v1.Config{}, append(files, precious)...)
	n.pull(ref)
	n.pull(busybox)
	pods := map[string]string{}
	for _, name := range []string{"root", "volume", "other", "ended"} {
		config := n.Pod(name)
		pods[name] = n.runPod(config)
		c := engine.Sleeper("main", busybox)
		switch name {
		case "root", "ended":
			c = engine.Sleeper("main", ref)
		case "volume":
			c.Mounts = []*cri.Mount{{ContainerPath: "/image", Image: &cri.ImageSpec{Image: ref}, Readonly: true}}
		}
		id := n.run(pods[name], config, c)
		if name == "ended" {
			n.stop(id, 0)
		}
	}
	_, err = n.Images.RemoveImage(n.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}})
	must(t, err)
	file, err := findLayerFile(n.Root(), "etc/precious")
	must(t, err)
	must(t, os.WriteFile(file, []byte("worthless content"), 0o644))
	out, err := n.evenkeel("fsck")
	if err == nil || !strings.Contains(out, "1 damaged") {
		t.Errorf("fsck of a damaged store: %v\n%s", err, out)
	}
	for name, id := range pods {
		want := name == "root" || name == "volume"
		if got := strings.Contains(out, "/"+name+" ("+id+")"); got != want {
			t.Errorf("pod %s named: %v, want %v\n%s", name, got, want, out)
		}
	}
}
