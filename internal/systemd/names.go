package systemd

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// ErrSlice matches errors about a name that is not one of a slice.
var ErrSlice = errors.New("not the name of a systemd slice")

// SlicePath is where the cgroup of a slice lies: a-b.slice stands in a.slice (systemd.slice(5)). "-.slice" is the root.
func SlicePath(slice string) (string, error) {
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok || name == "" || strings.Contains(name, "/") {
		return "", fmt.Errorf("%q: %w", slice, ErrSlice)
	}
	if name == "-" {
		return "/", nil
	}
	dir, prefix := "/", ""
	for part := range strings.SplitSeq(name, "-") {
		if part == "" {
			return "", fmt.Errorf("%q: %w: nothing stands between two dashes", slice, ErrSlice)
		}
		prefix += part
		dir = path.Join(dir, prefix+".slice")
		prefix += "-"
	}
	return dir, nil
}

// ParentPath is the cgroup that a request's cgroup_parent means. Clients write it in cgroupfs syntax, as a path of slices,
// or as the name of one; the last name alone decides where a slice is.
func ParentPath(parent string) (string, error) {
	return SlicePath(path.Base(parent))
}

// Scope is the unit of a container, by its id.
func (u *Units) Scope(id string) string { return u.Prefix + "-" + id + ".scope" }

// SpecPath is how a runtime-spec names the cgroup of a container to a runtime that asks systemd: slice:prefix:name.
func (u *Units) SpecPath(cgroup, id string) string {
	slice := path.Base(path.Dir(cgroup))
	if slice == "/" {
		slice = "-.slice"
	}
	return slice + ":" + u.Prefix + ":" + id
}

// idOf is the other way round of Scope; false for units that are not ours.
func (u *Units) idOf(unit string) (string, bool) {
	name, ok := strings.CutPrefix(unit, u.Prefix+"-")
	if !ok {
		return "", false
	}
	id, ok := strings.CutSuffix(name, ".scope")
	return id, ok && len(id) == 64 && strings.Trim(id, "0123456789abcdef") == ""
}
