package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/shim"
)

// openTerminal returns both ends of a new terminal, pty(7).
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

func handOver(t *testing.T, socket string, terminal int) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	if _, _, err := conn.(*net.UnixConn).WriteMsgUnix([]byte("pty"), unix.UnixRights(terminal), nil); err != nil {
		t.Error(err)
	}
}

type output struct{ bytes.Buffer }

func (*output) Close() error { return nil }

// ended runs withTerminal, which must not wait for whoever keeps a terminal or a connection open.
func ended(t *testing.T, s Streams, run func(console string) (shim.Exit, error)) (exit shim.Exit, err error) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		exit, err = withTerminal(context.Background(), t.TempDir(), s, run)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
	return exit, err
}

func TestATerminalThatComesLateIsShown(t *testing.T) {
	for name, late := range map[string]time.Duration{"at once": 0, "late": drainPatience / 4} {
		t.Run(name, func(t *testing.T) {
			master, slave := openTerminal(t) // the slave stays open, as by a descendant
			terminal := int(master.Fd())
			slave.WriteString("last words")
			var out output
			if _, err := ended(t, Streams{Stdout: &out}, func(console string) (shim.Exit, error) {
				if late == 0 {
					handOver(t, console, terminal)
				} else {
					time.AfterFunc(late, func() { handOver(t, console, terminal) })
				}
				return shim.Exit{Known: true}, nil
			}); err != nil || out.String() != "last words" {
				t.Errorf("%q, %v", out.String(), err)
			}
		})
	}
}

func TestNoTerminalIsWaitedForLong(t *testing.T) {
	for name, run := range map[string]func(console string) (shim.Exit, error){
		"none":  func(string) (shim.Exit, error) { return shim.Exit{}, nil },
		"fault": func(string) (shim.Exit, error) { return shim.Exit{}, os.ErrInvalid },
		"a connection that says nothing": func(console string) (shim.Exit, error) {
			conn, err := net.Dial("unix", console)
			if err == nil {
				t.Cleanup(func() { conn.Close() })
			}
			time.Sleep(50 * time.Millisecond) // it is accepted
			return shim.Exit{}, err
		},
	} {
		t.Run(name, func(t *testing.T) { ended(t, Streams{}, run) })
	}
}
