package oci

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// allCapabilities in the kernel's order (include/uapi/linux/capability.h).
var allCapabilities = prefixed(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
	NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT
	SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP
	MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)

// defaultCapabilities are Docker's and containerd's fourteen, which images are built to expect.
var defaultCapabilities = prefixed(`CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP
	NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE`)

func prefixed(names string) []string {
	var list []string
	for name := range strings.FieldsSeq(names) {
		list = append(list, "CAP_"+name)
	}
	return list
}

// capabilitySet keeps the kernel's order when listed, so that equal sets give equal documents.
type capabilitySet map[string]bool

func (s capabilitySet) list() []string {
	var list []string
	for _, name := range allCapabilities {
		if s[name] {
			list = append(list, name)
		}
	}
	return list
}

func (s capabilitySet) addAll(names []string) {
	for _, name := range names {
		s[name] = true
	}
}

// capabilities follows the CRI's Capability message: ambient ones are in every set, dropped ones in none. ALL is applied
// before single names, so that "drop ALL, add X" leaves X, and "add ALL, drop X" leaves the rest.
//
// The inheritable set holds the ambient ones only, which the kernel demands of it (capabilities(7)). Anything more would let
// file capabilities grant what the user was not meant to hold (CVE-2022-24769); peers leave it empty for that reason.
func (in *Input) capabilities() (*specs.LinuxCapabilities, error) {
	ask, err := in.capabilityRequest()
	if err != nil {
		return nil, err
	}
	held, ambient := ask.decide(in.grantable)
	if err := in.checkGrantable(ask, held); err != nil {
		return nil, err
	}
	bounding, raised := held.list(), ambient.list()
	return &specs.LinuxCapabilities{
		Bounding:    bounding,
		Effective:   slices.Clone(bounding),
		Permitted:   slices.Clone(bounding),
		Inheritable: raised,
		Ambient:     slices.Clone(raised),
	}, nil
}

// capabilityRequest is the request with its names made canonical.
type capabilityRequest struct {
	add, drop, ambient          []string // without ALL
	addAll, dropAll, ambientAll bool
}

func (in *Input) capabilityRequest() (ask capabilityRequest, err error) {
	wanted := in.security().GetCapabilities()
	if ask.add, ask.addAll, err = canonical("add_capabilities", wanted.GetAddCapabilities()); err != nil {
		return ask, err
	}
	if ask.drop, ask.dropAll, err = canonical("drop_capabilities", wanted.GetDropCapabilities()); err != nil {
		return ask, err
	}
	if ask.ambient, ask.ambientAll, err = canonical("add_ambient_capabilities", wanted.GetAddAmbientCapabilities()); err != nil {
		return ask, err
	}
	if in.security().GetPrivileged() { // the CRI's privileged: all are added, and nothing in the list takes one away
		ask.addAll, ask.dropAll, ask.drop = true, false, nil
	}
	if ask.addAll && !ask.dropAll { // whoever asks for all gets what there is, also if a name is given besides
		ask.add = nil
	}
	if ask.ambientAll {
		ask.ambient = nil
	}
	return ask, nil
}

// canonical upper-cases the names and gives them the CAP_ prefix, which requests may leave out.
func canonical(field string, names []string) (list []string, all bool, err error) {
	for _, name := range names {
		full := "CAP_" + strings.TrimPrefix(strings.ToUpper(name), "CAP_")
		switch {
		case full == "CAP_ALL":
			all = true
		case slices.Contains(allCapabilities, full):
			list = append(list, full)
		default:
			return nil, false, fmt.Errorf("capabilities.%s: there is no capability %q", field, name)
		}
	}
	return list, all, nil
}

func (ask capabilityRequest) decide(grantable func(string) bool) (held, ambient capabilitySet) {
	held, ambient = capabilitySet{}, capabilitySet{}
	held.addAll(slices.DeleteFunc(ask.base(), func(name string) bool { return !grantable(name) }))
	held.addAll(ask.add)
	if ask.ambientAll {
		ambient.addAll(slices.DeleteFunc(slices.Clone(allCapabilities), func(name string) bool { return !grantable(name) }))
	}
	ambient.addAll(ask.ambient)
	for _, name := range ask.drop {
		delete(held, name)
		delete(ambient, name)
	}
	held.addAll(ambient.list())
	return held, ambient
}

// base is what the container has before single names count.
func (ask capabilityRequest) base() []string {
	switch {
	case ask.dropAll:
		return nil
	case ask.addAll:
		return slices.Clone(allCapabilities)
	}
	return slices.Clone(defaultCapabilities)
}

// grantable reports whether the engine can hand a capability out. The kernel refuses to raise what the engine's own
// bounding set lacks, so "all" means all of that set.
func (in *Input) grantable(name string) bool {
	return in.Host.Capabilities == nil || slices.Contains(in.Host.Capabilities, name)
}

// checkGrantable refuses capabilities that were asked for by name and cannot be had; the runtime would fail with a bare EPERM.
func (in *Input) checkGrantable(ask capabilityRequest, held capabilitySet) error {
	for _, name := range slices.Concat(ask.add, ask.ambient) {
		if held[name] && !in.grantable(name) {
			return fmt.Errorf("capabilities: %s cannot be added, because the engine's own bounding set lacks it", name)
		}
	}
	return nil
}

// withheld lists capabilities the container would have on a machine that lets the engine hand out all of them.
func (in *Input) withheld() []string {
	ask, err := in.capabilityRequest()
	if err != nil {
		return nil
	}
	full, _ := ask.decide(func(string) bool { return true })
	return slices.DeleteFunc(full.list(), in.grantable)
}
