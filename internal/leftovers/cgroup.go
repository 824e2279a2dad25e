package leftovers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// cgroups walks the instance's cgroup in every hierarchy and collects who is in it.
func (s *search) cgroups() error {
	s.inCgroup = map[int]string{}
	if s.CgroupRoot == "" || s.CgroupRoot == "/" {
		return nil
	}
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	s.groups = map[string][]string{}
	var errs []error
	for _, root := range roots {
		errs = append(errs, s.walkCgroup(root))
	}
	for group, where := range s.groups {
		if !s.busy(group) {
			s.add(Cgroup, group, "exists in %s", strings.Join(where, ", "))
		}
	}
	return errors.Join(errs...)
}

// hierarchies lists where cgroup hierarchies are mounted whole.
func hierarchies() (roots []string, err error) {
	_, err = mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		if (m.FSType == "cgroup" || m.FSType == "cgroup2") && m.Root == "/" && !slices.Contains(roots, m.Mountpoint) {
			roots = append(roots, m.Mountpoint)
		}
		return true, false
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list cgroup hierarchies: %w", err)
	}
	return roots, nil
}

func (s *search) walkCgroup(root string) error {
	top := filepath.Join(root, s.CgroupRoot)
	err := filepath.WalkDir(top, func(dir string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went while we looked
		}
		if err != nil || !entry.IsDir() {
			return err
		}
		if dir != top && s.another(entry.Name()) {
			return fs.SkipDir
		}
		group := strings.TrimPrefix(dir, strings.TrimSuffix(root, "/"))
		if dir != top {
			s.groups[group] = append(s.groups[group], root)
		}
		return s.members(dir, group)
	})
	if err != nil {
		return fmt.Errorf("cannot walk cgroup %s: %w", top, err)
	}
	return nil
}

// members notes the processes of a cgroup. Who they belong to is decided with the other processes.
func (s *search) members(dir, group string) error {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || err != nil && strings.Contains(err.Error(), "no such device") {
		return nil // removed between open and read
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err == nil && pid > 0 && !s.owned(group) {
			s.inCgroup[pid] = group
		}
	}
	return nil
}

// busy reports whether a cgroup belongs to somebody known, itself or as the parent of one that does.
func (s *search) busy(group string) bool {
	for other := range s.groups {
		if (other == group || strings.HasPrefix(other, group+"/")) && s.owned(other) {
			return true
		}
	}
	return false
}
