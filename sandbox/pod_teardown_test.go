package sandbox

import (
	"context"
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
		net := &detaching{}
		p.Network = net
		pod, containers := enter(t, p, "web", 2)
		over := make(chan struct{})
		go pod.detachEarly(t.Context(), over)
		containers[0].markKilled()
		time.Sleep(10 * endPatience)
		if len(net.at) > 0 {
			t.Error("a container that is not killed has lost its network")
		}
		killed := time.Now()
		containers[1].markKilled()
		time.Sleep(2 * endPatience)
		if len(net.at) != 1 || net.at[0].Sub(killed) != endPatience {
			t.Errorf("detached at %v, %s after the kill at %v", net.at, endPatience, killed)
		}
		pod, _ = enter(t, p, "swift", 1)
		go pod.detachEarly(t.Context(), over)
		close(over)
		time.Sleep(2 * endPatience)
		if len(net.at) != 1 {
			t.Error("a pod that is being released in order was detached early")
		}
	})
}
