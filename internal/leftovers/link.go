package leftovers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/vishvananda/netlink"
)

// linkShape is the host's end of a pod's veth pair: as much of the pod's id as an interface name can hold.
var linkShape = regexp.MustCompile(`^ek([0-9a-f]{13})$`)

// links looks for our naming in this network namespace, which must be the daemon's. A link that is in another bridge is
// another instance's.
func (s *search) links() error {
	if s.Bridge == "" {
		return nil
	}
	all, err := listLinks()
	if err != nil {
		return fmt.Errorf("cannot list links: %w", err)
	}
	bridge := 0
	for _, l := range all {
		if l.Attrs().Name == s.Bridge {
			bridge = l.Attrs().Index
		}
	}
	for _, l := range all {
		a := l.Attrs()
		shape := linkShape.FindStringSubmatch(a.Name)
		if shape == nil || a.MasterIndex != 0 && a.MasterIndex != bridge {
			continue
		}
		if !s.owned(a.Alias) && !s.ownedPrefix(shape[1]) {
			s.add(Link, a.Name, "%s %s", l.Type(), inBridge(a.MasterIndex, s.Bridge, a.Alias))
		}
	}
	return nil
}

// listLinks asks again when the list changed under the dump, which the kernel only warns of.
func listLinks() (all []netlink.Link, err error) {
	for range 5 {
		all, err = netlink.LinkList()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// ownedPrefix reports whether a known pod's id begins so. The name is all there is of the id until the link is labelled.
func (s *search) ownedPrefix(prefix string) bool {
	for _, dir := range []string{s.Root, s.State} {
		pods, _ := filepath.Glob(filepath.Join(dir, "pods", prefix+"*"))
		for _, pod := range pods {
			if s.owned(filepath.Base(pod)) {
				return true
			}
		}
	}
	return false
}

func inBridge(master int, bridge, alias string) string {
	var words []string
	if master != 0 {
		words = append(words, "in bridge "+bridge)
	} else {
		words = append(words, "in no bridge")
	}
	if alias != "" {
		words = append(words, "of pod "+alias)
	}
	return strings.Join(words, ", ")
}

// records looks at what the networks wrote down: the built-in one's books, which link a name to a pod's id, and the
// records of CNI attachments, which carry it in their names.
func (s *search) records() error {
	if s.Root == "" {
		return nil
	}
	top := filepath.Join(s.Root, "network")
	err := filepath.WalkDir(top, func(file string, entry os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil || entry.IsDir() {
			return err
		}
		name, holder := entry.Name(), entry.Name()
		if entry.Type()&os.ModeSymlink != 0 {
			holder, _ = os.Readlink(file)
		}
		if idShape.MatchString(holder) && !s.owned(holder) {
			s.add(Address, file, "%s is kept for %s", strings.TrimSuffix(name, ".json"), idShape.FindString(holder))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot read the network's records: %w", err)
	}
	return nil
}
