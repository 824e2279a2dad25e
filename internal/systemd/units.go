package systemd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Units are the units of one engine. Their prefix keeps those of several engines on one machine apart.
type Units struct{ Prefix string }

// ask calls the manager. The error of a manager that cannot be reached says so.
func ask(ctx context.Context, question func(*dbus.Conn) error) error {
	c, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("cannot connect to systemd: %w", err)
	}
	defer c.Close()
	return question(c)
}

// named reports whether the manager answered with one of the errors.
func named(err error, names ...string) bool {
	var e godbus.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, name := range names {
		if e.Name == "org.freedesktop.systemd1."+name {
			return true
		}
	}
	return false
}

// await returns when a job has ended, whatever came of it.
func await(ctx context.Context, done <-chan string) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Discard stops a unit of ours, with whatever runs in it, and has its failure forgotten: a scope whose process was killed
// for want of memory stays loaded as failed otherwise. A nil error means that no such unit is active or failed.
func (u *Units) Discard(ctx context.Context, unit string) error {
	err := ask(ctx, func(c *dbus.Conn) error {
		done := make(chan string, 1)
		if _, err := c.StopUnitContext(ctx, unit, "replace", done); err != nil {
			return err
		}
		if err := await(ctx, done); err != nil {
			return err
		}
		return c.ResetFailedUnitContext(ctx, unit)
	})
	if err != nil && !named(err, "NoSuchUnit") {
		return fmt.Errorf("cannot stop unit %s: %w", unit, err)
	}
	return nil
}

// Scopes lists the containers' scopes that the manager has loaded, failed ones too: ids with their cgroups. The cgroup of
// one that is not active is empty.
func (u *Units) Scopes(ctx context.Context) (map[string]string, error) {
	groups := map[string]string{}
	err := ask(ctx, func(c *dbus.Conn) error {
		units, err := c.ListUnitsByPatternsContext(ctx, nil, []string{u.Prefix + "-*.scope"})
		if err != nil {
			return err
		}
		for _, unit := range units {
			id, ours := u.idOf(unit.Name)
			if !ours {
				continue
			}
			group := ""
			if p, err := c.GetUnitTypePropertyContext(ctx, unit.Name, "Scope", "ControlGroup"); err == nil {
				group, _ = p.Value.Value().(string)
			}
			groups[id] = group
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list scopes: %w", err)
	}
	return groups, nil
}

// Shims is the scope in which the shims live, outside of the daemon's own unit: neither its stop nor its limits reach them.
func (u *Units) Shims() string { return u.Prefix + "-shims.scope" }

// Hold puts a shim into the shims' scope, which begins with the first shim and ends with the last.
func (u *Units) Hold(ctx context.Context, pid int) error {
	err := ask(ctx, func(c *dbus.Conn) error {
		for try := 0; ; try++ {
			err := c.AttachProcessesToUnit(ctx, u.Shims(), "", []uint32{uint32(pid)})
			if err == nil || try == 5 {
				return err
			}
			// Two pods may be the first at once, and the scope may go with its last shim between the two questions.
			if err := u.beginShims(ctx, c, pid); err == nil || !named(err, "UnitExists") {
				return err
			}
			select {
			case <-time.After(time.Millisecond << try):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	})
	if err != nil {
		return fmt.Errorf("cannot put process %d into %s: %w", pid, u.Shims(), err)
	}
	return nil
}

// beginShims: at shutdown containers are stopped before this scope (Annotations), so a shim has nothing left to do by
// then; and since it takes no SIGTERM for an answer, it is killed at once.
func (u *Units) beginShims(ctx context.Context, c *dbus.Conn, pid int) error {
	done := make(chan string, 1)
	_, err := c.StartTransientUnitContext(ctx, u.Shims(), "fail", []dbus.Property{
		dbus.PropDescription("Shims of Evenkeel"), dbus.PropSlice("system.slice"), dbus.PropPids(uint32(pid)),
		property("Delegate", true), // nobody may be moved into it otherwise
		property("KillSignal", int32(unix.SIGKILL)), property("CollectMode", "inactive-or-failed"),
		property("TasksMax", uint64(math.MaxUint64)),
	}, done)
	if err != nil {
		return err
	}
	return await(ctx, done)
}

func property(name string, value any) dbus.Property {
	return dbus.Property{Name: name, Value: godbus.MakeVariant(value)}
}

// Annotations ask the runtime, which makes the scope, for properties of it. A failed scope is forgotten with its last process;
// at shutdown it is stopped before the shims and the engine, within the time that its processes get after SIGTERM.
func (u *Units) Annotations(grace time.Duration) map[string]string {
	const prefix = "org.systemd.property."
	return map[string]string{
		prefix + "CollectMode":     "'inactive-or-failed'",
		prefix + "TimeoutStopUSec": fmt.Sprintf("uint64 %d", grace.Microseconds()),
		prefix + "After":           fmt.Sprintf("['%s', 'evenkeel.service']", u.Shims()),
	}
}

// limits are the cgroup v2 files that systemd has properties for: what it does not know of, it overwrites when it next
// applies its own.
var limits = map[string]string{
	"memory.min": "MemoryMin", "memory.low": "MemoryLow", "memory.high": "MemoryHigh", "memory.max": "MemoryMax",
	"memory.swap.max": "MemorySwapMax", "pids.max": "TasksMax", "cpu.weight": "CPUWeight",
}

// properties translates contents of cgroup files, as far as systemd has words for them.
func properties(files map[string]string) (list []dbus.Property, err error) {
	for file, value := range files {
		name, known := limits[file]
		if !known {
			continue
		}
		n := uint64(math.MaxUint64)
		if value != "max" {
			if n, err = strconv.ParseUint(value, 10, 64); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
		}
		list = append(list, property(name, n))
	}
	return list, nil
}

// Settle returns when the manager has applied the properties that anybody has set before: it writes to the cgroup after it
// has answered, but before it takes the next question.
func (u *Units) Settle(ctx context.Context) error { return ask(ctx, settled) }

func settled(c *dbus.Conn) error {
	_, err := c.GetManagerProperty("Version")
	return err
}

// SetLimits tells the manager what is in cgroup files of a scope, and returns when it has written them.
func (u *Units) SetLimits(ctx context.Context, scope string, files map[string]string) error {
	list, err := properties(files)
	if err == nil {
		err = ask(ctx, func(c *dbus.Conn) (err error) {
			if len(list) > 0 {
				err = c.SetUnitPropertiesContext(ctx, scope, true, list...)
			}
			return errors.Join(err, settled(c))
		})
	}
	if err != nil {
		return fmt.Errorf("cannot set limits of unit %s: %w", scope, err)
	}
	return nil
}
