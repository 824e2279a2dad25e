// Package systemd is the service manager as far as cgroups are its own: slices that hold pods, scopes that hold
// containers, and one scope that holds the shims; and what a service tells its manager about itself.
//
// A container's cgroup is a scope, made by the OCI runtime (runc --systemd-cgroup) and named after the container's id.
// The sandbox's own cgroup is a plain directory in the pod's slice, as it is under CRI-O for pods without an infra
// container: a scope must have a process at its birth and goes with its last one, and a pod here needs no process. It
// has no limits that systemd would have to know of.
//
// Each question to the manager has a connection of its own, to its private socket. That costs a socket and two
// messages, works where no bus runs, and leaves nothing to heal when systemd re-executes itself.
package systemd

import "os"

// Booted reports whether systemd is this machine's init (sd_booted(3)).
func Booted() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}
