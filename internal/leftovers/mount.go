package leftovers

import (
	"fmt"

	"github.com/moby/sys/mountinfo"
)

// mounts looks at this process's mount namespace, which must be the daemon's.
func (s *search) mounts() error {
	all, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		rest, ours := s.ours(m.Mountpoint)
		return !ours || s.owned(rest), false
	})
	if err != nil {
		return fmt.Errorf("cannot list mounts: %w", err)
	}
	for _, m := range all {
		if m.FSType == "nsfs" {
			s.add(Namespace, m.Mountpoint, "pinned, %s", m.Root)
		} else {
			s.add(Mount, m.Mountpoint, "%s from %s", m.FSType, m.Source)
		}
	}
	return nil
}
