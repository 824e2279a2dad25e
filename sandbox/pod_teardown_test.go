package sandbox

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/evenkeel/evenkeel/network"
)

// detaching is a network that tells when a pod left it.
type detaching struct {
	network.Provider
	at []time.Time
}

func (d *detaching) Detach(context.Context, network.Pod) error {
	d.at = append(d.at, time.Now())
	return nil
}

// What waits to be killed runs, and may not lose its network before.
func TestNetworkGoesEarlyOnceTheKillIsSent(t *testing.T) {
	p := emptyPods(t)
	synctest.Test(t, func(t *testing.T) {
		left := &detaching{}
		p.Network = left
		pod, containers := enter(t, p, "web", 2)
		over := make(chan struct{})
		go pod.detachEarly(t.Context(), over)
		containers[0].markKilled()
		time.Sleep(10 * endPatience)
		synctest.Wait()
		if len(left.at) > 0 {
			t.Error("a container that is not killed has lost its network")
		}
		killed := time.Now()
		containers[1].markKilled()
		time.Sleep(2 * endPatience)
		synctest.Wait()
		if len(left.at) != 1 || left.at[0].Sub(killed) != endPatience {
			t.Errorf("detached at %v, %s after the kill at %v", left.at, endPatience, killed)
		}
		pod, _ = enter(t, p, "swift", 1)
		go pod.detachEarly(t.Context(), over)
		close(over)
		time.Sleep(2 * endPatience)
		synctest.Wait()
		if len(left.at) != 1 {
			t.Error("a pod that is being released in order was detached early")
		}
	})
}

// playShim answers calls of a pod's shim: it refuses so many of them.
func playShim(t *testing.T, p *pod, refusals int) {
	t.Helper()
	if err := os.MkdirAll(p.podState(p.id), 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(p.podState(p.id))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	listener, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/shim.sock", dir.Fd())) // the path itself is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for call := 0; ; call++ {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			answer := `{"Version":1}`
			if call < refusals {
				answer = `{"Version":1,"Error":{"Message":"a container lives"}}`
			}
			var size uint32
			binary.Read(conn, binary.BigEndian, &size)
			io.CopyN(io.Discard, conn, int64(size))
			binary.Write(conn, binary.BigEndian, uint32(len(answer)))
			io.WriteString(conn, answer)
			conn.Close()
		}
	}()
}

// A shim that was silent while its containers were killed learns of it when it wakes up, and lets nobody end it before.
func TestShimThatHasJustWoken(t *testing.T) {
	p := emptyPods(t)
	pod, _ := enter(t, p, "woken", 0)
	playShim(t, pod, 3)
	if err := pod.endShim(t.Context()); err != nil {
		t.Error(err)
	}
	pod, _ = enter(t, p, "stubborn", 0)
	playShim(t, pod, math.MaxInt)
	if err := pod.endShim(t.Context()); err == nil || !strings.Contains(err.Error(), "refuses to end: a container lives") {
		t.Errorf("a shim that always refuses: %v", err)
	}
}
