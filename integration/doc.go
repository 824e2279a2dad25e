// Package integration attacks the guarantees of docs/GUARANTEES.md with the real binaries: the daemon of bin/linux-ARCH
// runs in directories of its own, is driven over CRI as a kubelet drives it, is killed at every named effect, and must
// leave nothing behind. Every test ends with the search for leftovers.
package integration
