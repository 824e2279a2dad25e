package integration

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/internal/leftovers"
)

// restLimit is how long disk may follow an answer: removed directories are emptied in the background.
const restLimit = 3 * time.Second

// noLeftovers fails the test if the machine holds anything of this engine that it does not list.
func (n *node) noLeftovers() {
	n.t.Helper()
	known := n.known()
	deadline := time.Now().Add(engine.Patience(restLimit))
	for {
		found, err := n.Instance().Find(n.ctx(), func(id string) bool { return known[id] })
		must(n.t, err)
		if n.Network == "cni" {
			found = append(found, n.cniAddresses(known)...)
		}
		if len(found) == 0 {
			return
		}
		if time.Now().After(deadline) {
			for _, f := range found {
				n.t.Errorf("left over: %s", f)
			}
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// known are the ids that the daemon lists.
func (n *node) known() map[string]bool {
	n.t.Helper()
	known := map[string]bool{}
	pods, err := n.Runtime.ListPodSandbox(n.ctx(), &cri.ListPodSandboxRequest{})
	must(n.t, err)
	for _, p := range pods.Items {
		known[p.Id] = true
	}
	containers, err := n.Runtime.ListContainers(n.ctx(), &cri.ListContainersRequest{})
	must(n.t, err)
	for _, c := range containers.Containers {
		known[c.Id] = true
	}
	return known
}

// cniAddresses finds reservations in host-local's books: one file per address, whose first line is the pod's id.
func (n *node) cniAddresses(known map[string]bool) (found []leftovers.Finding) {
	files, _ := filepath.Glob(filepath.Join(n.Base, "ipam", n.Bridge, "*.*.*.*"))
	for _, f := range files {
		data, err := os.ReadFile(f)
		if id, _, _ := strings.Cut(string(data), "\r\n"); err == nil && !known[id] {
			found = append(found, leftovers.Finding{Kind: leftovers.Address, Name: f, Detail: "reserved for " + id})
		}
	}
	return found
}

// nothingShared checks that an engine which stopped without pods took along what pods had shared.
func (n *node) nothingShared() {
	n.t.Helper()
	if n.Network != "builtin" {
		return // the bridge is the plugin's
	}
	if _, err := net.InterfaceByName(n.Bridge); err == nil {
		n.t.Errorf("bridge %s outlives the engine", n.Bridge)
	}
	for _, dir := range engine.CgroupDirs(n.Instance().CgroupRoot) {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			n.t.Errorf("cgroup %s outlives the engine", dir)
		}
	}
}
