// Package cgroup makes, empties, removes and reads control groups on v1, hybrid and v2 machines alike.
//
// A path is always written in cgroupfs syntax from the root of the hierarchy, as the kubelet gives it:
// /kubepods/burstable/pod<uid>/<id>. What differs between versions is decided once, in Detect.
//
// The files are read and written plainly instead of through github.com/opencontainers/cgroups, which runc uses: its
// statistics open dozens of files per container where the CRI's answers need seven, and its managers are made to
// apply a container's limits, which stays the OCI runtime's work. The paths are the same ones it chooses
// (fs/paths.go, fs2/defaultpath.go), or the runtime and the engine would look at different cgroups.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Tree is this machine's cgroup hierarchy or hierarchies.
type Tree struct {
	V2 bool // one unified hierarchy; false for v1 and hybrid

	hierarchies []hierarchy
	controllers map[string]bool // those that limit containers
}

// hierarchy is one mounted tree of cgroups.
type hierarchy struct {
	mount       string
	controllers []string // of v1: memory, or cpu and cpuacct, or name=systemd
	unified     bool
}

func (h hierarchy) has(controller string) bool { return slices.Contains(h.controllers, controller) }

// Sentinels. Errors beside them carry the cgroup's path.
var (
	// ErrNotExist matches errors about a cgroup that is not there.
	ErrNotExist = errors.New("no such cgroup")
	// ErrPath matches errors about a path that is not one of a cgroup below the root.
	ErrPath = errors.New("invalid cgroup path")
	// ErrBusy matches errors about processes that stay.
	ErrBusy = errors.New("processes stay in the cgroup")
)

// check refuses what could name the root cgroup, which belongs to the machine, or lead out of the hierarchy.
func check(path string) error {
	if strings.Trim(path, "/") == "" {
		return fmt.Errorf("%w %q: the root cgroup is not ours", ErrPath, path)
	}
	if strings.ContainsRune(path, 0) {
		return fmt.Errorf("%w %q", ErrPath, path)
	}
	for _, element := range strings.Split(path, "/") {
		if element == "." || element == ".." {
			return fmt.Errorf("%w %q: it contains %q", ErrPath, path, element)
		}
	}
	return nil
}

// Dirs lists the absolute directories of a cgroup, one per hierarchy, whether they exist or not. An invalid path has none.
func (t *Tree) Dirs(path string) []string {
	if check(path) != nil {
		return nil
	}
	dirs := make([]string, 0, len(t.hierarchies))
	for _, h := range t.hierarchies {
		dirs = append(dirs, filepath.Join(h.mount, path))
	}
	return dirs
}

// dir is the directory of a cgroup in the hierarchy of a v1 controller, or in the only one; empty if there is none.
func (t *Tree) dir(controller, path string) string {
	if check(path) != nil {
		return ""
	}
	for _, h := range t.hierarchies {
		if t.V2 || h.has(controller) {
			return filepath.Join(h.mount, path)
		}
	}
	return ""
}

// unifiedDir is the directory of a cgroup in the v2 hierarchy, which hybrid machines have too; empty if there is none.
func (t *Tree) unifiedDir(path string) string {
	for _, h := range t.hierarchies {
		if h.unified {
			return filepath.Join(h.mount, path)
		}
	}
	return ""
}

// MemoryDir is the directory whose OOM counter belongs to the cgroup, or empty where the memory controller is missing.
// On v2 the counter is oom_kill in memory.events, on v1 in memory.oom_control.
func (t *Tree) MemoryDir(path string) string {
	if !t.controllers["memory"] {
		return ""
	}
	return t.dir("memory", path)
}

// HasController reports whether containers can be limited by a controller: cpu, cpuset, memory, pids, hugetlb, ... A
// controller that a hybrid machine has in its v2 part is missing here, since runtimes set limits in the v1 part only.
func (t *Tree) HasController(name string) bool { return t.controllers[name] }

// Children lists the names of the cgroups directly below path that exist in any hierarchy, sorted. The path may be "/".
func (t *Tree) Children(path string) ([]string, error) {
	if strings.Trim(path, "/") != "" {
		if err := check(path); err != nil {
			return nil, err
		}
	}
	names, found := map[string]bool{}, false
	for _, h := range t.hierarchies {
		children, err := subdirectories(filepath.Join(h.mount, path))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot list cgroups below %s: %w", path, err)
		}
		found = true
		for _, child := range children {
			names[child] = true
		}
	}
	if !found {
		return nil, fmt.Errorf("cannot list cgroups below %s: %w", path, ErrNotExist)
	}
	return sortedKeys(names), nil
}

func sortedKeys[K ~string | ~int](set map[K]bool) []K {
	keys := make([]K, 0, len(set))
	for key := range set {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// subdirectories lists the cgroups in a directory.
func subdirectories(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}
