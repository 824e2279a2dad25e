package integration

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/integration/registry"
	"github.com/evenkeel/evenkeel/internal/effect"
)

// criuEnv names a CRIU that works, for machines whose distribution has one that is older than their kernel.
const criuEnv = "EVENKEEL_TEST_CRIU"

// criu returns the directory of a CRIU that works on this kernel.
func criu(t *testing.T) string {
	t.Helper()
	program := os.Getenv(criuEnv)
	if program == "" {
		var err error
		if program, err = exec.LookPath("criu"); err != nil {
			t.Skip("no checkpoint is made here, for want of CRIU: install it, or name one in " + criuEnv)
		}
	}
	if out, err := exec.Command(program, "check").CombinedOutput(); err != nil {
		t.Skipf("no checkpoint is made here, since %s does not work on this kernel; name a newer one in %s: %s", program, criuEnv, out)
	}
	return filepath.Dir(program)
}

// playCRIU puts a program of that name into a directory of its own.
func playCRIU(t *testing.T, script string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "criu"), []byte("#!/bin/sh\n"+script), 0o755))
	return dir
}

func pathWith(dir string) string { return "PATH=" + dir + ":" + os.Getenv("PATH") }

func (n *node) checkpoint(id, location string) error {
	_, err := n.Runtime.CheckpointContainer(n.ctx(), &cri.CheckpointContainerRequest{ContainerId: id, Location: location})
	return err
}

// counter counts up, once in 20 ms, and writes how far it has come.
func counter(name, image string) *cri.ContainerConfig {
	c := engine.Container(name, image, "sh", "-c", `
		trap 'exit 0' TERM
		echo changed > /etc/hostile; rm /opt/gone; rm -r /opt/dir; mkdir /opt/dir; echo new > /opt/dir/new; ln /opt/dir/new /opt/again; ln -s new /opt/link
		i=0; while :; do i=$((i+1)); echo $i > /count.new; mv /count.new /count; sleep 0.02; done`)
	return c
}

// count reads what the counter wrote. The file is replaced as a whole, so there is always a number in it.
func count(t *testing.T, rootfs string) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(rootfs, "count"))
	must(t, err)
	number, err := strconv.Atoi(strings.TrimSpace(string(data)))
	must(t, err)
	return number
}

// goesOn waits until the counter counts.
func (n *node) goesOn(rootfs string) int {
	n.t.Helper()
	n.eventually(10*time.Second, func() error {
		_, err := os.Stat(filepath.Join(rootfs, "count"))
		return err
	})
	before := count(n.t, rootfs)
	n.eventually(10*time.Second, func() error {
		if now := count(n.t, rootfs); now <= before {
			return fmt.Errorf("the container stands still at %d", now)
		}
		return nil
	})
	return before
}

func (n *node) rootfs(id string) string { return filepath.Join(n.State, "containers", id, "rootfs") }

// noCheckpointLeft: neither half an archive, nor what it was to be made of, nor a container that stands still.
func (n *node) noCheckpointLeft(id, location string) {
	n.t.Helper()
	if _, err := os.Lstat(location); !errors.Is(err, fs.ErrNotExist) {
		n.t.Errorf("%s exists: %v", location, err)
	}
	if left, _ := os.ReadDir(filepath.Dir(location)); len(left) > 0 {
		n.t.Errorf("left beside it: %v", left)
	}
	n.eventually(20*time.Second, func() error {
		if _, err := os.Lstat(filepath.Join(n.Root(), "containers", id, "checkpoint")); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the working directory exists: %v", err)
		}
		return nil
	})
	n.goesOn(n.rootfs(id))
	if out, code := n.execSync(id, "echo", "alive"); code != 0 || out != "alive\n" {
		n.t.Errorf("exec: %q, %d", out, code)
	}
}

func (n *node) execSync(id string, argv ...string) (string, int32) {
	n.t.Helper()
	r, err := n.Runtime.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: argv, Timeout: 20})
	must(n.t, err)
	return string(r.Stdout), r.ExitCode
}

// countingImage has files that the counter changes and removes.
func countingImage(t *testing.T) string {
	t.Helper()
	files, err := registry.BusyboxFiles()
	must(t, err)
	files = append(files, registry.File{Name: "opt/gone", Mode: 0o644, Content: []byte("x")}, registry.File{Name: "opt/dir/old", Mode: 0o644, Content: []byte("x")},
		registry.File{Name: "etc/hostile", Mode: 0o644, Content: []byte("x")})
	layer, err := registry.Layer(files...)
	must(t, err)
	img, err := registry.Image(v1.Config{Env: []string{"PATH=/bin"}}, layer)
	must(t, err)
	ref, err := images.Push("counting:latest", img)
	must(t, err)
	return ref
}

func TestCheckpointThatCannotBe(t *testing.T) {
	n := prepareNode(t, "builtin")
	n.Env = []string{pathWith(playCRIU(t, "echo 'no CRIU today' >&2; exit 1"))}
	must(t, n.Start())
	n.pull(busybox)
	ref := n.pull(countingImage(t))
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	id := n.run(pod, cfg, counter("main", ref))
	created := n.create(pod, cfg, engine.Sleeper("created", busybox))
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	good := filepath.Join(dir, "sub", "ck.tar")
	must(t, os.Mkdir(filepath.Dir(good), 0o700))
	for _, c := range []struct {
		id, location string
		code         codes.Code
		words        []string
	}{
		{"", good, codes.InvalidArgument, []string{"container_id"}},
		{id, "", codes.InvalidArgument, []string{"location"}},
		{id, "ck.tar", codes.InvalidArgument, []string{`location: "ck.tar" is not the absolute path`}},
		{id, dir + "/", codes.InvalidArgument, []string{"location"}},
		{id, filepath.Join(dir, "file"), codes.InvalidArgument, []string{filepath.Join(dir, "file"), "exists already"}},
		{id, filepath.Join(dir, "sub"), codes.InvalidArgument, []string{"exists already"}},
		{id, filepath.Join(dir, "none/ck.tar"), codes.InvalidArgument, []string{"none", "no such file"}},
		{id, filepath.Join(dir, "file/ck.tar"), codes.InvalidArgument, []string{"file is not a directory"}},
		{"unknown", good, codes.NotFound, []string{"unknown"}},
		{created, good, codes.FailedPrecondition, []string{created, "created, not running"}},
		{id, good, codes.Unknown, []string{id, good, "checkpoint"}}, // CRIU itself
	} {
		refused(t, n.checkpoint(c.id, c.location), c.code, c.words...)
	}
	n.noCheckpointLeft(id, good)

	must(t, n.Restart("PATH="+filepath.Dir(playCRIU(t, ""))+":/nonexistent"))
	refused(t, n.checkpoint(id, good), codes.Unimplemented, "criu", "PATH")
	_, err := n.Runtime.CheckpointPod(n.ctx(), &cri.CheckpointPodRequest{PodSandboxId: pod})
	refused(t, err, codes.Unimplemented, "CheckpointContainer")
	_, err = n.Runtime.RestorePod(n.ctx(), &cri.RestorePodRequest{})
	refused(t, err, codes.Unimplemented, "restore")
	n.noCheckpointLeft(id, good)
}

// A CRIU that takes its time is not killed when the caller leaves; what it made is thrown away, and nobody else waits.
func TestCheckpointThatIsTooSlow(t *testing.T) {
	n := prepareNode(t, "builtin")
	release := filepath.Join(t.TempDir(), "release")
	n.Env = []string{pathWith(playCRIU(t, "while ! [ -e "+release+" ]; do sleep 0.1; done; exit 1"))}
	must(t, n.Start())
	ref := n.pull(countingImage(t))
	n.pull(busybox)
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	id := n.run(pod, cfg, counter("main", ref))
	n.goesOn(n.rootfs(id))
	location := filepath.Join(t.TempDir(), "ck.tar")
	_, err := n.Runtime.CheckpointContainer(n.ctx(), &cri.CheckpointContainerRequest{ContainerId: id, Location: location, Timeout: 1})
	refused(t, err, codes.DeadlineExceeded, id, location, "1s")
	_, other := n.up("other")
	if out, code := n.execSync(other, "echo", "hi"); code != 0 || out != "hi\n" {
		t.Errorf("another pod: %q, %d", out, code)
	}
	must(t, os.WriteFile(release, nil, 0o600))
	n.noCheckpointLeft(id, location)
}

// A CRIU that never ends keeps nobody alive: who asks for the end of its container, or of the pod, waits some seconds for it, and the
// container is asked politely all the same. So it is when the engine was started anew meanwhile.
func TestStopDuringACheckpoint(t *testing.T) {
	waits(t)
	n := prepareNode(t, "builtin")
	begun := filepath.Join(t.TempDir(), "begun")
	n.Env = []string{pathWith(playCRIU(t, "touch "+begun+"; while :; do sleep 0.1; done"))}
	must(t, n.Start())
	ref := n.pull(countingImage(t))
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	dumping := func(name string) (string, chan error) {
		id := n.run(pod, cfg, counter(name, ref))
		n.goesOn(n.rootfs(id))
		answer, location := make(chan error, 1), filepath.Join(t.TempDir(), "ck.tar")
		go func() { answer <- n.checkpoint(id, location) }()
		n.eventually(20*time.Second, func() error { return os.Remove(begun) })
		return id, answer
	}
	soon := func(act func()) {
		t.Helper()
		asked := time.Now()
		act()
		if took := time.Since(asked); took > engine.Patience(10*time.Second) {
			t.Errorf("it took %s", took)
		}
	}
	id, answer := dumping("asked")
	soon(func() { n.stop(id, engine.Seconds(30)) })
	if s := n.status(id); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 0 {
		t.Errorf("the container that was asked to end: %v", s)
	}
	refused(t, <-answer, codes.Unknown, id, "stopped meanwhile")
	id, _ = dumping("orphaned")
	must(t, n.Restart(n.Env...))
	soon(func() { n.remove(id) })
	_, answer = dumping("killed")
	soon(func() { n.removePod(pod) })
	if err := <-answer; err == nil {
		t.Error("a checkpoint was made")
	}
}

// The engine dies while CRIU is at work. The next one waits for that CRIU, and lets the container go on.
func TestCheckpointThatLosesItsEngine(t *testing.T) {
	n := prepareNode(t, "builtin")
	dir := t.TempDir()
	release, begun := filepath.Join(dir, "release"), filepath.Join(dir, "begun")
	n.Env = []string{pathWith(playCRIU(t, "touch "+begun+"; while ! [ -e "+release+" ]; do sleep 0.1; done; exit 1"))}
	must(t, n.Start())
	ref := n.pull(countingImage(t))
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	id := n.run(pod, cfg, counter("main", ref))
	n.goesOn(n.rootfs(id))
	location := filepath.Join(t.TempDir(), "ck.tar")
	go n.Runtime.CheckpointContainer(n.ctx(), &cri.CheckpointContainerRequest{ContainerId: id, Location: location})
	n.eventually(20*time.Second, func() error {
		_, err := os.Stat(begun)
		return err
	})
	must(t, n.Restart())
	if got := n.status(id).State; got != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s", got)
	}
	must(t, os.WriteFile(release, nil, 0o600))
	n.noCheckpointLeft(id, location)
}

// A container goes on after its checkpoint, and so does its copy that the runtime restores from the archive.
func TestCheckpointAndRestore(t *testing.T) {
	n := prepareNode(t, "builtin")
	path := pathWith(criu(t))
	n.Env = []string{path}
	must(t, n.Start())
	ref := n.pull(countingImage(t))
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	id := n.run(pod, cfg, counter("main", ref))
	n.goesOn(n.rootfs(id))
	location := filepath.Join(t.TempDir(), "ck.tar")
	must(t, n.checkpoint(id, location))
	after := n.goesOn(n.rootfs(id))
	if info, err := os.Stat(location); err != nil || info.Mode() != 0o600 {
		t.Errorf("the archive holds memory, and its mode is %v, %v", info.Mode(), err)
	}
	refused(t, n.checkpoint(id, location), codes.InvalidArgument, "exists already")
	must(t, n.checkpoint(id, location+".second"))
	if left, _ := filepath.Glob(filepath.Join(n.Root(), "containers", id, "checkpoint")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}

	bundle := t.TempDir()
	unpack(t, location, bundle)
	saved := n.checkArchive(bundle, id, n.status(id).ImageRef)
	if saved >= after {
		t.Errorf("the archive says %d, and the container was at %d", saved, after)
	}
	n.stop(id, 5)
	n.remove(id)
	n.restore(bundle, path, saved)
}

// checkArchive looks at what the archive says of files and of itself, and returns how far the counter was.
func (n *node) checkArchive(bundle, id, ref string) int {
	n.t.Helper()
	for _, name := range []string{"checkpoint/inventory.img", "checkpoint/pstree.img", "checkpoint/descriptors.json", "spec.dump", "stats-dump", "dump.log"} {
		if _, err := os.Stat(filepath.Join(bundle, name)); err != nil {
			n.t.Error(err)
		}
	}
	var config struct{ ID, Name, RootfsImageRef, Runtime string }
	var status cri.ContainerStatus
	var gone []string
	readJSON(n.t, filepath.Join(bundle, "config.dump"), &config)
	readJSON(n.t, filepath.Join(bundle, "status.dump"), &status)
	readJSON(n.t, filepath.Join(bundle, "deleted.files"), &gone)
	if config.ID != id || config.Name != "main" || config.RootfsImageRef != ref || config.Runtime != "runc" {
		n.t.Errorf("config.dump: %+v", config)
	}
	if status.Id != id || status.State != cri.ContainerState_CONTAINER_RUNNING {
		n.t.Errorf("status.dump: %v", &status)
	}
	if slices.Sort(gone); !slices.Equal(gone, []string{"opt/dir/old", "opt/gone"}) {
		n.t.Errorf("deleted.files: %q", gone)
	}
	rootfs := filepath.Join(bundle, "rootfs")
	must(n.t, os.Mkdir(rootfs, 0o755))
	unpack(n.t, filepath.Join(bundle, "rootfs-diff.tar"), rootfs)
	for name, want := range map[string]string{"etc/hostile": "changed\n", "opt/dir/new": "new\n", "opt/again": "new\n"} {
		if got, err := os.ReadFile(filepath.Join(rootfs, name)); err != nil || string(got) != want {
			n.t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	a, _ := os.Stat(filepath.Join(rootfs, "opt/dir/new"))
	if b, err := os.Stat(filepath.Join(rootfs, "opt/again")); err != nil || !os.SameFile(a, b) {
		n.t.Errorf("a hard link is none any more: %v", err)
	}
	if to, err := os.Readlink(filepath.Join(rootfs, "opt/link")); err != nil || to != "new" {
		n.t.Errorf("the link: %q, %v", to, err)
	}
	return count(n.t, rootfs)
}

// restore has the runtime go on with what the archive says, in the pod that still is, and outside the engine.
func (n *node) restore(bundle, path string, saved int) {
	n.t.Helper()
	rootfs := filepath.Join(bundle, "rootfs")
	files, err := registry.BusyboxFiles()
	must(n.t, err)
	for _, f := range files {
		if strings.HasSuffix(f.Name, "/") {
			must(n.t, os.MkdirAll(filepath.Join(rootfs, f.Name), 0o755))
			continue
		}
		target := filepath.Join(rootfs, f.Name)
		must(n.t, os.MkdirAll(filepath.Dir(target), 0o755))
		if _, err := os.Lstat(target); err == nil {
			continue
		}
		if f.Link != "" {
			must(n.t, os.Symlink(f.Link, target))
		} else {
			must(n.t, os.WriteFile(target, f.Content, 0o755))
		}
	}
	var spec map[string]any
	readJSON(n.t, filepath.Join(bundle, "spec.dump"), &spec)
	spec["root"].(map[string]any)["path"] = rootfs
	text, err := json.Marshal(spec)
	must(n.t, err)
	must(n.t, os.WriteFile(filepath.Join(bundle, "config.json"), text, 0o600))

	root, id := filepath.Join(n.State, "restored"), "restored"
	runc := func(args ...string) ([]byte, error) {
		cmd := exec.Command(filepath.Join(n.Bin, "runc"), append([]string{"--root", root}, args...)...)
		cmd.Env = append(os.Environ(), path)
		return cmd.CombinedOutput()
	}
	n.t.Cleanup(func() {
		runc("delete", "--force", id)
		os.RemoveAll(root)
	})
	out, err := os.Create(filepath.Join(bundle, "output"))
	must(n.t, err)
	defer out.Close()
	cmd := exec.Command(filepath.Join(n.Bin, "runc"), "--root", root, "restore", "--detach", "--bundle", bundle, "--tcp-established", "--ext-unix-sk", "--file-locks",
		"--image-path", filepath.Join(bundle, "checkpoint"), "--work-path", bundle, "--manage-cgroups-mode", "soft", id)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), path), out, out
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(out.Name())
		n.t.Fatalf("runc restore: %v\n%s", err, said)
	}
	if now := n.goesOn(rootfs); now < saved || now > saved+10_000 {
		n.t.Errorf("restored at %d, saved at %d", now, saved)
	}
	if said, err := runc("kill", id, "KILL"); err != nil {
		n.t.Errorf("%v: %s", err, said)
	}
}

func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	f, err := os.Open(archive)
	must(t, err)
	defer f.Close()
	for in := tar.NewReader(f); ; {
		h, err := in.Next()
		if err == io.EOF {
			return
		}
		must(t, err)
		if !filepath.IsLocal(h.Name) || h.Uname != "" {
			t.Fatalf("an odd entry: %+v", h)
		}
		target := filepath.Join(dir, h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			must(t, os.MkdirAll(target, 0o755))
		case tar.TypeSymlink:
			must(t, os.Symlink(h.Linkname, target))
		case tar.TypeLink:
			must(t, os.Link(filepath.Join(dir, h.Linkname), target))
		case tar.TypeReg:
			data, err := io.ReadAll(in)
			must(t, err)
			must(t, os.WriteFile(target, data, h.FileInfo().Mode()))
		}
	}
}

func readJSON(t *testing.T, path string, into any) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// Whatever the engine dies of in a checkpoint, or fails at, the container goes on, and the next checkpoint succeeds.
func TestKillPointsOfCheckpoint(t *testing.T) {
	n := prepareNode(t, "builtin")
	path := pathWith(criu(t))
	n.Env = []string{path}
	must(t, n.Start())
	ref := n.pull(countingImage(t))
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	id := n.run(pod, cfg, counter("main", ref))
	for _, step := range []string{"begin", "pause", "dump", "layer", "resume", "write", "end"} {
		for _, action := range []string{"kill-before", "kill-after", "fail-before", "fail-after"} {
			t.Run(action+":checkpoint."+step, func(t *testing.T) {
				location := filepath.Join(t.TempDir(), "sub", "ck.tar")
				must(t, os.Mkdir(filepath.Dir(location), 0o700))
				must(t, n.Restart(path, effect.FaultEnv+"="+action+":checkpoint."+step))
				if err := n.checkpoint(id, location); err == nil {
					t.Error("nothing went wrong")
				}
				must(t, n.Restart(path))
				if _, err := os.Stat(location); err == nil { // then it is whole
					unpack(t, location, t.TempDir())
					must(t, os.Remove(location))
				}
				n.noCheckpointLeft(id, location)
				if err := n.checkpoint(id, location); err != nil {
					t.Errorf("the next checkpoint: %v", err)
				}
			})
		}
	}
}
