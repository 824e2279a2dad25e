package systemd

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain lets this program be the service that a manager started.
func TestMain(m *testing.M) {
	if path := os.Getenv("TEST_SERVICE"); path != "" {
		if err := beService(path); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// beService answers one client with what it found, and what its children would find.
func beService(path string) error {
	s, err := TakeService()
	if err != nil {
		return err
	}
	l, err := s.Listener(path)
	if err != nil {
		return err
	}
	if l == nil {
		return fmt.Errorf("no socket was handed over")
	}
	if err := s.Tell(Ready); err != nil {
		return err
	}
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	l.Close()
	var left []string
	for _, entry := range os.Environ() {
		if strings.HasPrefix(entry, "LISTEN_") || strings.HasPrefix(entry, "NOTIFY_") || strings.HasPrefix(entry, "WATCHDOG_") {
			left = append(left, entry)
		}
	}
	fmt.Fprintf(conn, "watchdog %s, left %q", s.Watchdog, left)
	conn.Close()
	return s.Tell(Stopping)
}

// manager does for a service what systemd does: it holds the socket, and hears.
type manager struct {
	path   string
	socket *os.File
	heard  *net.UnixConn
}

func newManager(t *testing.T) *manager {
	m := &manager{path: filepath.Join(t.TempDir(), "s")}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: m.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if m.socket, err = l.File(); err != nil {
		t.Fatal(err)
	}
	l.Close() // the manager keeps the socket, and does not accept
	t.Cleanup(func() { m.socket.Close() })
	if m.heard, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path + ".notify", Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.heard.Close() })
	return m
}

// start runs the service with LISTEN_PID set to its own pid, which a shell knows.
func (m *manager) start(t *testing.T, want string) *exec.Cmd {
	c := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0"`, os.Args[0])
	c.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES=a", "NOTIFY_SOCKET="+m.path+".notify", "WATCHDOG_USEC=2000000", "TEST_SERVICE="+want)
	c.ExtraFiles = []*os.File{m.socket}
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c
}

func (m *manager) hear(t *testing.T, want string) {
	t.Helper()
	m.heard.SetReadDeadline(time.Now().Add(time.Minute))
	buffer := make([]byte, 100)
	n, err := m.heard.Read(buffer)
	if err != nil || string(buffer[:n]) != want {
		t.Fatalf("heard %q (%v), want %q", buffer[:n], err, want)
	}
}

func TestSocketOutlivesTheService(t *testing.T) {
	m := newManager(t)
	for range 3 {
		client, err := net.Dial("unix", m.path) // before the service runs: it waits in the backlog
		if err != nil {
			t.Fatal(err)
		}
		service := m.start(t, m.path)
		m.hear(t, Ready)
		answer := make([]byte, 200)
		client.SetDeadline(time.Now().Add(time.Minute))
		n, err := client.Read(answer)
		if got := string(answer[:n]); err != nil || got != `watchdog 2s, left []` {
			t.Errorf("the service says %q (%v)", got, err)
		}
		client.Close()
		m.hear(t, Stopping)
		if err := service.Wait(); err != nil {
			t.Error(err)
		}
	}
}

func TestForeignSocketIsAnError(t *testing.T) {
	m := newManager(t)
	if err := m.start(t, m.path+"-other").Wait(); err == nil {
		t.Error("a service took a socket that is not its own")
	}
}

func TestNobodyManages(t *testing.T) {
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("LISTEN_PID", "1") // another process's
	t.Setenv("WATCHDOG_USEC", "1000")
	t.Setenv("WATCHDOG_PID", "1")
	s, err := TakeService()
	if err != nil || s.Watchdog != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if l, err := s.Listener("/x"); l != nil || err != nil {
		t.Errorf("%v, %v", l, err)
	}
	if err := s.Tell(Ready); err != nil {
		t.Error(err)
	}
}
