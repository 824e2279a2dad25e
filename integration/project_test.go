package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/internal/projectquota"
)

// project finds the one in a container's record.
func (n *node) project(id string) (project uint32) {
	n.t.Helper()
	data, err := os.ReadFile(filepath.Join(n.Root(), "containers", id, "record"))
	must(n.t, err)
	_, rest, _ := strings.Cut(string(data), `"Project":`)
	if _, err := fmt.Sscanf(rest, "%d", &project); err != nil {
		n.t.Fatalf("container %s has no project: %v", id, err)
	}
	return project
}

// Where the file system counts by projects, the writable layer is known at once and exactly, also after a restart; what
// overlayfs moves and copies stays possible, and nothing of a project is left when its container is gone.
func TestWritableLayerIsAProject(t *testing.T) {
	if _, _, err := projectquota.Usage("/var/lib", 0); err != nil {
		t.Skipf("writable layers are walked on this machine: %v (the virtual machines count)", err)
	}
	n := start(t, "builtin")
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	one := n.run(pod, cfg, engine.Sleeper("one", busybox))
	two := n.run(pod, cfg, engine.Sleeper("two", busybox))
	if n.project(one) == n.project(two) {
		t.Fatalf("both are project %d", n.project(one))
	}
	layer := func(id string) (bytes, inodes uint64) {
		r, err := n.Runtime.ContainerStats(n.ctx(), &cri.ContainerStatsRequest{ContainerId: id})
		must(t, err)
		return r.Stats.WritableLayer.UsedBytes.Value, r.Stats.WritableLayer.InodesUsed.Value
	}
	bytes, inodes := layer(one)
	others, _ := layer(two)
	n.output(one, "sh", "-c", `set -e
		mkdir -p /a/b; dd if=/dev/zero of=/a/b/big bs=1M count=5; sync
		echo more >> /etc/passwd; mv /etc/passwd /a/passwd; mv /a /c; rm /bin/dd; ln /c/b/big /c/again`)
	now, files := layer(one)
	if grown := now - bytes; grown < 5<<20 || grown > 5<<20+256<<10 {
		t.Errorf("5 MiB more are counted as %d bytes", grown)
	}
	if files <= inodes || files > inodes+12 {
		t.Errorf("it had %d inodes, and has %d", inodes, files)
	}
	if same, _ := layer(two); same != others {
		t.Errorf("the other container had %d bytes, and has %d", others, same)
	}
	must(t, n.Restart())
	if again, _ := layer(one); again != now {
		t.Errorf("%d bytes after a restart, %d before", again, now)
	}
	project := n.project(one)
	n.stop(one, 0)
	n.remove(one)
	n.eventually(20*time.Second, func() error {
		bytes, inodes, err := projectquota.Usage(n.Root(), project)
		if err != nil || bytes != 0 || inodes != 0 {
			return fmt.Errorf("project %d has %d bytes and %d inodes, %v", project, bytes, inodes, err)
		}
		return nil
	})
}
