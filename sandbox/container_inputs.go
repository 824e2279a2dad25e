package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/oci"
)

// user resolves who the process runs as against the image's own user database.
func (c *creation) user() (oci.User, error) {
	passwd, err := c.readInRootfs("etc/passwd")
	if err != nil {
		return oci.User{}, err
	}
	group, err := c.readInRootfs("etc/group")
	if err != nil {
		return oci.User{}, err
	}
	return oci.ResolveUser(c.config.GetLinux().GetSecurityContext(), c.image.Config.Config.User, passwd, group)
}

// databaseLimit bounds what is read of an image's user database, in bytes: the image is not ours.
const databaseLimit = 4 << 20

// readInRootfs reads a file of the image with every symlink resolved inside the image (openat2(2), RESOLVE_IN_ROOT).
// A file that is not there is nil.
func (c *creation) readInRootfs(name string) ([]byte, error) {
	root, err := unix.Open(c.rootfs(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the root file system of container %s: %w", c.id, err)
	}
	defer unix.Close(root)
	how := &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(root, name, how)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("cannot open /%s of the image: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, databaseLimit))
}

// checkStopSignal refuses a number that the CRI gives to no signal: to end the container by another one could lose its data.
func checkStopSignal(s cri.Signal) error {
	if _, ok := cri.Signal_name[int32(s)]; !ok {
		return fmt.Errorf("config.stop_signal: %d is no signal of the CRI's (api.proto, enum Signal): %w", s, ErrInvalid)
	}
	return nil
}

// stopSignal is the request's, else the image's, else SIGTERM.
func stopSignal(cfg *cri.ContainerConfig, img *image.Image) int {
	if s := cfg.GetStopSignal(); s != cri.Signal_SIGNAL_RUNTIME_DEFAULT {
		if n, ok := signalNumber(strings.TrimPrefix(s.String(), "SIGNAL_")); ok {
			return n
		}
	}
	if n, ok := signalNumber(img.Config.Config.StopSignal); ok {
		return n
	}
	return int(syscall.SIGTERM)
}

// signalAliases are second names of signals, signal(7).
var signalAliases = map[string]syscall.Signal{"SIGCLD": unix.SIGCHLD, "SIGIOT": unix.SIGABRT, "SIGPOLL": unix.SIGIO}

// signalNumber reads "SIGUSR1", "USR1", "10", and the real-time forms "SIGRTMIN+3" and, as the CRI spells it, "SIGRTMINPLUS3".
func signalNumber(name string) (int, bool) {
	name = strings.ToUpper(strings.TrimSpace(name))
	if n, err := strconv.Atoi(name); err == nil {
		return n, n > 0 && n <= 64
	}
	name = "SIG" + strings.TrimPrefix(name, "SIG")
	if n := unix.SignalNum(name); n != 0 {
		return int(n), true
	}
	if n, ok := signalAliases[name]; ok {
		return int(n), true
	}
	name = strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(name)
	for prefix, base := range map[string]int{"SIGRTMIN": 34, "SIGRTMAX": 64} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		offset, err := strconv.Atoi("0" + strings.TrimLeft(rest, "+-"))
		if strings.HasPrefix(rest, "-") {
			offset = -offset
		}
		return base + offset, err == nil && base+offset >= 34 && base+offset <= 64
	}
	return 0, false
}
