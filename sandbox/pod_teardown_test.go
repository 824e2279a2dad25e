package sandbox

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"sync/atomic"
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

// playShim answers a pod's shim's calls, each on its own; one without an answer waits until its caller has gone.
func playShim(t *testing.T, p *pod, answer func(call string) string) {
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
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				var size uint32
				binary.Read(conn, binary.BigEndian, &size)
				var request struct{ Call string }
				if err := json.NewDecoder(io.LimitReader(conn, int64(size))).Decode(&request); err != nil {
					t.Error(err)
					return
				}
				said := answer(request.Call)
				if said == "" {
					io.Copy(io.Discard, conn)
					return
				}
				binary.Write(conn, binary.BigEndian, uint32(len(said)))
				io.WriteString(conn, said)
			}()
		}
	}()
}

// refusing refuses so many calls.
func refusing(refusals int64) func(string) string {
	var calls atomic.Int64
	return func(string) string {
		if calls.Add(1) <= refusals {
			return `{"Version":1,"Error":{"Message":"a container lives"}}`
		}
		return `{"Version":1}`
	}
}

// A shim that was silent while its containers were killed learns of it when it wakes up, and lets nobody end it before.
func TestShimThatHasJustWoken(t *testing.T) {
	p := emptyPods(t)
	pod, _ := enter(t, p, "woken", 0)
	playShim(t, pod, refusing(3))
	if err := pod.endShim(t.Context()); err != nil {
		t.Error(err)
	}
	pod, _ = enter(t, p, "stubborn", 0)
	playShim(t, pod, refusing(math.MaxInt64))
	if err := pod.endShim(t.Context()); err == nil || !strings.Contains(err.Error(), "refuses to end: a container lives") {
		t.Errorf("a shim that always refuses: %v", err)
	}
}

// On a machine that starves a shim can need more than exitPatience to report what was killed. While it answers other questions it is
// believed to be at work, and what it says then counts; one that answers nothing is not waited for.
func TestAnExitThatIsToldLate(t *testing.T) {
	for name, voice := range map[string]string{"starving": `{"Version":1,"State":{}}`, "hung": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pod, containers := enter(t, emptyPods(t), "p", 1)
			c := containers[0]
			killed := *c.facts()
			killed.CreatedAt, killed.StartedAt, killed.BootID = time.Now(), time.Now(), c.BootID
			c.record.Store(&killed)
			told := time.Now().Add(exitPatience + time.Second/2)
			playShim(t, pod, func(call string) string {
				if call != "wait" || voice == "" {
					return voice
				}
				time.Sleep(time.Until(told))
				return `{"Version":1,"Exit":{"Known":true,"Code":137,"Signal":9}}`
			})
			begun := time.Now()
			e, took := c.exit(t.Context()), time.Since(begun)
			if e.Known != (voice != "") || e.Known && e.Code != 137 {
				t.Errorf("known %v, code %d, after %s", e.Known, e.Code, took)
			}
			if e.Code == 255 && took > exitPatience+3*voiceLimit {
				t.Errorf("a shim that hangs was waited for %s", took)
			}
		})
	}
}
