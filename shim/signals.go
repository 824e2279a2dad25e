package shim

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// resetLibcSignals gives signals 32 and 33 their default action. Go's runtime leaves these two, which C libraries keep for
// themselves, as it finds them; and a signal that our caller's caller ignored would stay ignored through every exec, down
// into the containers. A zeroed struct kernel_sigaction means SIG_DFL on every architecture (signal.h).
func resetLibcSignals() {
	var action [8]uint64 // larger than any architecture's
	for _, signal := range []uintptr{32, 33} {
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, signal, uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	}
}
