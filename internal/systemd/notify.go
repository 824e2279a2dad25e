package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

// Service is what a service's manager said to it in the environment: sd_notify(3), sd_watchdog_enabled(3) and
// sd_listen_fds(3). Its zero value belongs to a process that nobody manages, and everything about it is a no-op.
type Service struct {
	Watchdog time.Duration // it must be told of every so often that all is well; 0: it does not ask

	notify  string     // NOTIFY_SOCKET
	sockets []*os.File // handed over
}

// firstSocket is the number of the first descriptor handed over.
const firstSocket = 3

// TakeService reads and removes what is meant for this process alone. Children must not find it: an OCI runtime would wait for a
// container that says it is ready.
func TakeService() (*Service, error) {
	s := &Service{notify: take("NOTIFY_SOCKET")}
	usec, pid := take("WATCHDOG_USEC"), take("WATCHDOG_PID")
	if n, err := strconv.ParseInt(usec, 10, 64); err == nil && mine(pid, true) {
		s.Watchdog = time.Duration(n) * time.Microsecond
	}
	count, pid := take("LISTEN_FDS"), take("LISTEN_PID")
	take("LISTEN_FDNAMES")
	if count == "" || !mine(pid, false) {
		return s, nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 {
		return s, fmt.Errorf("LISTEN_FDS is %q, not a number of sockets", count)
	}
	for fd := firstSocket; fd < firstSocket+n; fd++ {
		syscall.CloseOnExec(fd)
		s.sockets = append(s.sockets, os.NewFile(uintptr(fd), "socket from systemd"))
	}
	return s, nil
}

func take(name string) string {
	value := os.Getenv(name)
	os.Unsetenv(name)
	return value
}

// mine reports whether a pid in the environment is this process's; ifUnset where none is given.
func mine(pid string, ifUnset bool) bool {
	return pid == "" && ifUnset || pid == strconv.Itoa(os.Getpid())
}

// Listener is the socket that was handed over for a path, or nil if none was at all. Closing it leaves the socket to the
// manager: who connects meanwhile waits for the next process.
func (s *Service) Listener(path string) (net.Listener, error) {
	if len(s.sockets) == 0 {
		return nil, nil
	}
	var found net.Listener
	var addresses []string
	for _, f := range s.sockets {
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("cannot use a socket from systemd: %w", err)
		}
		if address := l.Addr().String(); address == path && found == nil {
			found = l
		} else {
			addresses = append(addresses, address)
			l.Close()
		}
	}
	s.sockets = nil
	if found == nil {
		return nil, fmt.Errorf("systemd hands over the sockets %q, and none of them is %s: make the socket unit and `listen` agree", addresses, path)
	}
	return found, nil
}

// What a service says.
const (
	Ready    = "READY=1"
	Stopping = "STOPPING=1"
	Alive    = "WATCHDOG=1"
)

// Tell sends a state to the manager, if there is one.
func (s *Service) Tell(state string) error {
	if s.notify == "" {
		return nil
	}
	// A leading @ means the abstract namespace, to systemd and to Go alike.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.notify, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("cannot notify systemd: %w", err)
	}
	_, err = conn.Write([]byte(state))
	return errors.Join(err, conn.Close())
}
