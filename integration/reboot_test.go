package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// leases lists the addresses that are written down as given out, on either network.
func (n *node) leases() []string {
	books := filepath.Join(n.Root(), "network", "ip", "*.*")
	if n.Network == "cni" {
		books = filepath.Join(n.Base, "ipam", n.Bridge, "*.*.*.*")
	}
	found, _ := filepath.Glob(books)
	return found
}

// TestReboot: what the last boot left on the disk is released, and its pods are shown as what they are from the first
// answer on.
func TestReboot(t *testing.T) {
	for _, network := range []string{"builtin", "cni"} {
		t.Run(network, func(t *testing.T) {
			n := start(t, network)
			port := &cri.PortMapping{HostPort: int32(freePort(t)), ContainerPort: 80}
			type old struct{ pod, container string }
			var olds []old
			for i := range 3 {
				cfg := n.Pod(fmt.Sprint("old", i))
				if i == 0 {
					cfg.PortMappings = []*cri.PortMapping{port}
				}
				pod := n.runPod(cfg)
				olds = append(olds, old{pod, n.run(pod, cfg, engine.Sleeper("main", busybox))})
			}
			if got := n.leases(); len(got) != len(olds) {
				t.Fatalf("%d pods have the addresses %v", len(olds), got)
			}
			must(t, n.Reboot())
			must(t, n.Start())
			for _, o := range olds {
				if s := n.podStatus(o.pod); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
					t.Errorf("a pod of the last boot is %s", s.State)
				}
				if s := n.status(o.container); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 255 || s.Reason != "Unknown" {
					t.Errorf("a container of the last boot is %s with %d, %s", s.State, s.ExitCode, s.Reason)
				}
			}
			n.eventually(20*time.Second, func() error {
				if left := n.leases(); len(left) > 0 {
					return fmt.Errorf("addresses of the last boot are still taken: %v", left)
				}
				return nil
			})
			cfg := n.Pod("old0")
			cfg.Metadata.Attempt = 1
			cfg.PortMappings = []*cri.PortMapping{port}
			pod := n.runPod(cfg)
			n.run(pod, cfg, engine.Container("web", busybox, "httpd", "-f", "-p", "80", "-h", "/etc"))
			must(t, fetch(n.ctx(), fmt.Sprintf("http://127.0.0.1:%d/passwd", port.HostPort)))
			for _, o := range olds {
				n.removePod(o.pod)
			}
			n.noLeftovers()
			if left := n.leases(); len(left) != 1 {
				t.Errorf("one pod has the addresses %v", left)
			}
			if _, err := os.Stat(filepath.Join(n.State, "pods", olds[0].pod)); err == nil {
				t.Error("an old pod has a state directory")
			}
		})
	}
}
