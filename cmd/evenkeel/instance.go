package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"strings"

	"github.com/evenkeel/evenkeel/internal/leftovers"
	"github.com/evenkeel/evenkeel/internal/systemd"
)

// defaultState is the state directory of the one engine that a node usually has.
const defaultState = "/run/evenkeel"

// instanceOf derives the names of everything an engine makes outside its own directories. Engines with different state
// directories get different names, so that several can live on one machine.
func instanceOf(c config) leftovers.Instance {
	suffix := ""
	if state := filepath.Clean(c.State); state != defaultState {
		sum := sha256.Sum256([]byte(state))
		suffix = "-" + hex.EncodeToString(sum[:4])
	}
	i := leftovers.Instance{
		Root: filepath.Clean(c.Root), State: filepath.Clean(c.State),
		Bridge: c.Network.Builtin.Bridge, NFTable: "evenkeel" + suffix, CgroupRoot: cgroupRoot(c.Cgroup, "evenkeel"+suffix),
	}
	if i.Bridge == "" {
		i.Bridge = "ek0" + suffix
	}
	return i
}

// cgroupRoot is the cgroup of pods that name no parent.
func cgroupRoot(c cgroupConfig, name string) string {
	if !c.scopes() {
		return "/" + strings.Trim(cmp.Or(c.Parent, name), "/")
	}
	slice, _ := systemd.ParentPath(cmp.Or(c.Parent, name+".slice")) // checked with the configuration
	return slice
}

// units are the instance's units, or nil where systemd is not the init. The table's name is the instance's.
func units(i leftovers.Instance) *systemd.Units {
	if !systemd.Booted() {
		return nil
	}
	return &systemd.Units{Prefix: i.NFTable}
}
