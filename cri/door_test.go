package cri

import (
	"errors"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// TestShutDoor plays a server that is slow to look at who came in.
func TestShutDoor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	held, err := l.File() // as a service manager holds it
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	d := newDoor(l)
	var in, looked atomic.Int32
	ended := make(chan error, 1)
	go func() {
		for {
			conn, err := d.Accept()
			if err != nil {
				ended <- err
				return
			}
			in.Add(1)
			go func() {
				time.Sleep(20 * time.Millisecond)
				looked.Add(1)
				conn.SetDeadline(time.Time{})
				conn.Close()
			}()
		}
	}()
	dial := func() {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
	for range 20 {
		dial()
	}
	d.shutWithin(time.Minute)
	if i, l := in.Load(), looked.Load(); i != l {
		t.Errorf("the door says all is quiet, and %d of %d were not looked at", i-l, i)
	}
	before := in.Load()
	dial()
	d.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept ends with %v", err)
	}
	if in.Load() != before {
		t.Error("somebody came in through a door that was shut")
	}
	next, err := net.FileListener(held)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	next.(*net.UnixListener).SetDeadline(time.Now().Add(time.Minute))
	for range 21 - int(before) { // all that were not let in, the last one for sure
		if _, err := next.Accept(); err != nil {
			t.Fatalf("who waited outside is gone: %v", err)
		}
	}
}

func TestDoorThatIsClosedAtOnce(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	d := newDoor(l)
	d.Close()
	if _, err := d.Accept(); err == nil {
		t.Error("a closed door lets somebody in")
	}
	d.shutWithin(time.Minute) // returns, though no server is there
}
