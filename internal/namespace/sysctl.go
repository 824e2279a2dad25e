package namespace

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrSysctl matches errors about a sysctl that the pod cannot have: the request is wrong, not the machine.
var ErrSysctl = errors.New("invalid sysctl")

// setting is a sysctl that belongs to a namespace.
type setting struct {
	key, value string
	path       string // below /proc/sys
	flag       int    // of its namespace
}

// ofLink says whether it belongs to a network interface that a new namespace does not have: only "all", "default" and "lo" are there
// from the beginning.
func (s setting) ofLink() bool {
	parts := strings.Split(s.path, "/")
	return len(parts) > 4 && parts[0] == "net" && (parts[2] == "conf" || parts[2] == "neigh") && !slices.Contains([]string{"all", "default", "lo"}, parts[3])
}

// SetOfLinks writes the sysctls of interfaces, once the pod has them. A name that does not exist by then is ErrSysctl.
func SetOfLinks(dir string, o Options) error {
	settings, err := o.settings()
	if err != nil {
		return err
	}
	settings = slices.DeleteFunc(settings, func(s setting) bool { return !s.ofLink() })
	if len(settings) == 0 {
		return nil
	}
	return OnThrowawayThread(func() error {
		if err := enterNet(filepath.Join(dir, "net")); err != nil {
			return err
		}
		return o.write(settings)
	})
}

// write sets them for the calling thread.
func (o Options) write(settings []setting) error {
	for _, s := range settings {
		err := s.write()
		if errors.Is(err, unix.EACCES) && o.User != nil {
			err = asRootOf(o.User, s.write)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// settings checks the sysctls against the namespaces asked for. They are sorted, so that two pods alike become alike.
func (o Options) settings() ([]setting, error) {
	var settings []setting
	for _, key := range slices.Sorted(maps.Keys(o.Sysctls)) {
		path, err := sysctlPath(key)
		if err != nil {
			return nil, err
		}
		flag, err := o.owner(key, path)
		if err != nil {
			return nil, err
		}
		settings = append(settings, setting{key: key, value: o.Sysctls[key], path: path, flag: flag})
	}
	return settings, nil
}

// sysctlPath turns a key into a path below /proc/sys. The separator that comes first counts, and the other one stands for
// a dot in a name (sysctl(8)): net.ipv4.conf.eth0/100.forwarding is net/ipv4/conf/eth0.100/forwarding.
func sysctlPath(key string) (string, error) {
	path := key
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		path = strings.NewReplacer(".", "/", "/", ".").Replace(key)
	}
	for _, element := range strings.Split(path, "/") {
		if element == "" || element == "." || element == ".." || strings.ContainsRune(element, 0) {
			return "", fmt.Errorf("%w: sysctls[%q] is no name of a kernel parameter", ErrSysctl, key)
		}
	}
	return path, nil
}

// owner finds the namespace that a sysctl belongs to. The rules are those of the runtime specification's
// implementations and of Kubernetes (pkg/kubelet/sysctl): everything else would change the whole machine.
func (o Options) owner(key, path string) (flag int, err error) {
	switch {
	case strings.HasPrefix(path, "net/"):
		if !o.Net {
			return 0, fmt.Errorf("%w: sysctls[%q] needs a network namespace of the pod's own, and the pod uses the host's", ErrSysctl, key)
		}
		return unix.CLONE_NEWNET, nil
	case path == "kernel/sem", strings.HasPrefix(path, "kernel/shm"), strings.HasPrefix(path, "kernel/msg"), strings.HasPrefix(path, "fs/mqueue/"):
		if !o.IPC {
			return 0, fmt.Errorf("%w: sysctls[%q] needs an IPC namespace of the pod's own, and the pod uses the host's", ErrSysctl, key)
		}
		return unix.CLONE_NEWIPC, nil
	case path == "kernel/hostname", path == "kernel/domainname":
		return 0, fmt.Errorf("%w: sysctls[%q] is set by the pod's host name", ErrSysctl, key)
	}
	return 0, fmt.Errorf("%w: sysctls[%q] belongs to no namespace and would change the whole machine", ErrSysctl, key)
}

// write sets it for the calling thread: /proc/sys shows the namespaces of the task that opens a file in it. A name that
// does not exist in the new namespace is the request's mistake.
func (s setting) write() error {
	fd, err := unix.Open("/proc/sys/"+s.path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return fmt.Errorf("%w: sysctls[%q]: this kernel has no such parameter in a namespace", ErrSysctl, s.key)
	}
	if err != nil {
		return fmt.Errorf("cannot open sysctls[%q]: %w", s.key, err)
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(s.value))
	if err == unix.EINVAL || err == unix.ERANGE {
		return fmt.Errorf("%w: sysctls[%q] cannot be %q: %w", ErrSysctl, s.key, s.value, err)
	}
	if err != nil {
		return fmt.Errorf("cannot set sysctls[%q] to %q: %w", s.key, s.value, err)
	}
	return nil
}
