package leftovers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
)

// unitLimit is for one question to a manager that answers at once.
const unitLimit = 30 * time.Second

// loadedUnit is a unit that systemd keeps in memory: one that is active, or failed and not yet forgotten.
type loadedUnit struct {
	name, state string // ActiveState (org.freedesktop.systemd1(5))
}

func (u loadedUnit) failed() bool { return u.state == "failed" }

// cure is what an operator types.
func (u loadedUnit) cure() string {
	if u.failed() {
		return "`systemctl reset-failed " + u.name + "`"
	}
	return "`systemctl stop " + u.name + "`"
}

// units looks at the scopes and slices that systemd keeps for the instance.
func (s *search) units(ctx context.Context) error {
	list, err := s.loadedUnits(ctx)
	for _, u := range list {
		if why := s.stray(u); why != "" {
			s.add(Unit, u.name, "%s, %s: %s", u.state, why, u.cure())
		}
	}
	return err
}

// FailedUnits lists the instance's scopes and slices that failed and that systemd has not forgotten. There is none where systemd is
// not the init.
func (i Instance) FailedUnits(ctx context.Context) (found []Finding, err error) {
	i = i.clean()
	list, err := i.loadedUnits(ctx)
	for _, u := range list {
		if u.failed() && i.names(u.name) {
			found = append(found, Finding{Unit, u.name, u.cure()})
		}
	}
	return found, err
}

// loadedUnits lists candidates: another instance's name may begin like this one's.
func (i Instance) loadedUnits(ctx context.Context) (list []loadedUnit, err error) {
	// sd_booted(3)
	if _, err := os.Lstat("/run/systemd/system"); i.NFTable == "" || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	ctx, end := context.WithTimeout(ctx, unitLimit)
	defer end()
	c, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to systemd: %w", err)
	}
	defer c.Close()
	patterns := []string{i.NFTable + "-*.scope"}
	if slice, ok := i.slice(); ok {
		patterns = append(patterns, slice+".slice", slice+"-*.slice")
	}
	units, err := c.ListUnitsByPatternsContext(ctx, nil, patterns)
	if err != nil {
		return nil, fmt.Errorf("cannot list systemd's units: %w", err)
	}
	for _, u := range units {
		if u.LoadState != "not-found" { // somebody only mentions it
			list = append(list, loadedUnit{u.Name, u.ActiveState})
		}
	}
	return list, nil
}

// slice is the name of the slice of pods that name no parent, without its suffix; false where the engine makes plain cgroups.
func (i Instance) slice() (string, bool) {
	return strings.CutSuffix(path.Base(i.CgroupRoot), ".slice")
}

// names reports whether a unit is the instance's by its name.
func (i Instance) names(unit string) bool {
	if name, ok := strings.CutSuffix(unit, ".scope"); ok {
		rest, ok := strings.CutPrefix(name, i.NFTable+"-")
		return ok && (rest == "shims" || len(rest) == 64 && idShape.MatchString(rest))
	}
	slice, ok := i.slice()
	// An operator who chose a slice may have others in it.
	below := slice == i.NFTable && strings.HasPrefix(unit, slice+"-") && !i.another(unit)
	return ok && (unit == slice+".slice" || below)
}

// otherSlice is that of an engine whose state directory is not the usual one; systemd puts it below that of the usual one.
var otherSlice = regexp.MustCompile(`^evenkeel-[0-9a-f]{8}[.-]`)

// another reports whether a slice below the instance's own is another instance's.
func (i Instance) another(slice string) bool {
	own, _ := i.slice()
	return own == "evenkeel" && otherSlice.MatchString(slice)
}

// stray says why a unit should not be there; empty if it should, or is not ours. The shims' scope and the engine's slice last
// as long as the engine likes.
func (s *search) stray(u loadedUnit) string {
	slice, _ := s.slice()
	switch own := u.name == s.NFTable+"-shims.scope" || u.name == slice+".slice"; {
	case !s.names(u.name):
		return ""
	case own && u.failed():
		return "in the way of the next one of this name"
	case own || s.owned(u.name) || s.holds(u.name):
		return ""
	case strings.HasSuffix(u.name, ".slice"):
		return "a slice without a pod"
	}
	return "a scope of no container"
}

// holds reports whether the cgroup of somebody known is in a slice.
func (s *search) holds(slice string) bool {
	for group := range s.groups {
		if strings.Contains(group, "/"+slice+"/") && s.owned(group) {
			return true
		}
	}
	return false
}
