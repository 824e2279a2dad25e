package integration

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// fill takes all space that is left in dir, until the returned function gives it back.
func fill(t *testing.T, dir string) (empty func()) {
	t.Helper()
	file := filepath.Join(dir, "filler")
	f, err := os.Create(file)
	must(t, err)
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	t.Cleanup(func() { os.Remove(file) })
	return func() { must(t, os.Remove(file)) }
}

// TestFullDiskKeepsNothingAlive: what is asked to end ends, what has ended is seen to have, and what is to be removed goes, where no
// record can be written. Else a full disk could not be made room on.
func TestFullDiskKeepsNothingAlive(t *testing.T) {
	disk := t.TempDir()
	must(t, unix.Mount("disk", disk, "tmpfs", 0, "size=64m"))
	t.Cleanup(func() { must(t, unix.Unmount(disk, unix.MNT_DETACH)) }) // after the daemon has ended
	n := prepareNode(t, "builtin")
	must(t, os.Remove(n.Root()))
	must(t, os.Symlink(disk, n.Root()))
	must(t, n.Start())
	n.pull(busybox)
	volume := filepath.Join(n.Base, "volume")
	must(t, os.Mkdir(volume, 0o755))
	cfg := n.Pod("leaving")
	pod := n.runPod(cfg)
	c := engine.Container("main", busybox, "sh", "-c", "until test -e /v/go; do usleep 10000; done; exit 23")
	c.Mounts = []*cri.Mount{{HostPath: volume, ContainerPath: "/v"}}
	leaving := n.run(pod, cfg, c)
	late := n.create(pod, cfg, engine.Sleeper("late", busybox))
	stopped, stoppedContainer := n.up("stopped")
	removed, removedContainer := n.up("removed")

	empty := fill(t, disk)
	must(t, os.WriteFile(filepath.Join(volume, "go"), nil, 0o644))
	if s := n.awaitState(leaving, cri.ContainerState_CONTAINER_EXITED); s.ExitCode != 23 {
		t.Errorf("the container that ended by itself: %v", s)
	}
	n.startContainer(late)
	n.output(late, "true")
	n.stopPod(stopped)
	if s := n.podStatus(stopped); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the stopped pod is %s", s.State)
	}
	before := n.status(stoppedContainer)
	if before.State != cri.ContainerState_CONTAINER_EXITED || before.ExitCode != 137 {
		t.Errorf("the container of the stopped pod: %v", before)
	}
	if r, err := n.Runtime.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.Pod("unwritten")}); err == nil {
		t.Errorf("pod %s was made and cannot be on record", r.PodSandboxId)
	}
	n.remove(removedContainer)
	n.removePod(removed)
	if known := n.known(); known[removed] || known[removedContainer] || len(known) != 5 { // two pods and three containers
		t.Errorf("the engine knows %v", known)
	}

	must(t, n.Kill())
	empty()
	must(t, n.Start())
	n.awaitState(late, cri.ContainerState_CONTAINER_RUNNING)
	if s := n.awaitState(leaving, cri.ContainerState_CONTAINER_EXITED); s.ExitCode != 23 {
		t.Errorf("after a restart, the container that ended by itself: %v", s)
	}
	n.stopPod(stopped)
	if s := n.status(stoppedContainer); s.State != before.State || s.ExitCode != before.ExitCode || s.FinishedAt != before.FinishedAt {
		t.Errorf("after a restart, the container of the stopped pod: %v, want %v", s, before)
	}
}
