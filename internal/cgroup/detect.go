package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// hybridMount is the only place where runtimes look for the v2 part of a hybrid machine (systemd's choice).
const hybridMount = "/sys/fs/cgroup/unified"

// Detect reads /proc/self/mountinfo and finds the hierarchies. Mount points are the host's root cgroups.
func Detect() (*Tree, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("cannot read the mounts of cgroup hierarchies: %w", err)
	}
	known, err := knownControllers()
	if err != nil {
		return nil, err
	}
	tree := fromMounts(mounts, known)
	if len(tree.hierarchies) == 0 {
		return nil, errors.New("cannot find a cgroup hierarchy: none is mounted at /sys/fs/cgroup")
	}
	if tree.V2 {
		return tree, tree.readControllers()
	}
	return tree, nil
}

// knownControllers reads the names of v1 controllers. A kernel built for v2 alone may not have the file.
func knownControllers() (map[string]bool, error) {
	file, err := os.Open("/proc/cgroups")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the cgroup controllers: %w", err)
	}
	defer file.Close()
	return parseControllers(file)
}

func parseControllers(r io.Reader) (map[string]bool, error) {
	names := map[string]bool{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 0 && !strings.HasPrefix(fields[0], "#") {
			names[fields[0]] = true
		}
	}
	return names, lines.Err()
}

// fromMounts decides which mounts runtimes use. A hierarchy may be mounted again elsewhere (a bind mount, a container's
// view); the mount below /sys/fs/cgroup counts, or else the first one.
func fromMounts(mounts []*mountinfo.Info, known map[string]bool) *Tree {
	mounts = slices.Clone(mounts)
	slices.SortStableFunc(mounts, func(a, b *mountinfo.Info) int { return standard(b) - standard(a) })
	tree, seen := &Tree{controllers: map[string]bool{}}, map[string]bool{}
	var unified []*mountinfo.Info
	for _, m := range mounts {
		device := fmt.Sprintf("%d:%d", m.Major, m.Minor)
		if seen[device] {
			continue
		}
		seen[device] = true
		if m.FSType == "cgroup2" {
			unified = append(unified, m)
		} else {
			tree.addV1(m, known)
		}
	}
	tree.V2 = len(tree.controllers) == 0 && len(unified) > 0
	switch {
	case tree.V2:
		tree.hierarchies = []hierarchy{{mount: unified[0].Mountpoint, unified: true}}
	case len(unified) > 0 && unified[0].Mountpoint == hybridMount:
		tree.hierarchies = append(tree.hierarchies, hierarchy{mount: hybridMount, unified: true})
	}
	return tree
}

// addV1 takes a v1 hierarchy whose controllers runtimes know. Of the named ones without a controller that is systemd's
// alone.
func (t *Tree) addV1(m *mountinfo.Info, known map[string]bool) {
	h := hierarchy{mount: m.Mountpoint}
	for option := range strings.SplitSeq(m.VFSOptions, ",") {
		if known[option] {
			t.controllers[option] = true
		}
		if known[option] || option == "name=systemd" {
			h.controllers = append(h.controllers, option)
		}
	}
	if len(h.controllers) > 0 {
		t.hierarchies = append(t.hierarchies, h)
	}
	if h.has("blkio") {
		t.controllers["io"] = true
	}
}

func standard(m *mountinfo.Info) int {
	if m.Mountpoint == "/sys/fs/cgroup" || strings.HasPrefix(m.Mountpoint, "/sys/fs/cgroup/") {
		return 1
	}
	return 0
}

// readControllers reads what v2 offers. Devices and freezing need no controller there (eBPF, cgroup.freeze).
func (t *Tree) readControllers() error {
	data, err := os.ReadFile(t.hierarchies[0].mount + "/cgroup.controllers")
	if err != nil {
		return fmt.Errorf("cannot read the cgroup controllers: %w", err)
	}
	for _, name := range strings.Fields(string(data)) {
		t.controllers[name] = true
	}
	t.controllers["devices"], t.controllers["freezer"] = true, true
	t.controllers["cpuacct"], t.controllers["blkio"] = t.controllers["cpu"], t.controllers["io"]
	return nil
}
