package sandbox

import (
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestAStatusIsOfOneMoment: a container may end while its status is put together. With the state from after the end and all else from
// before it, a failure would be told as a success.
func TestAStatusIsOfOneMoment(t *testing.T) {
	p := emptyPods(t)
	_, containers := enter(t, p, "p", 1)
	c := containers[0]
	before := *c.facts()
	before.CreatedAt, before.StartedAt, before.Process.PID = time.Now(), time.Now(), 7
	after := before
	after.FinishedAt, after.Exit = time.Now(), exit{Code: 3, Reason: "Error"}
	c.record.Store(&after)
	if s, info := c.statusOf(&before), c.info(&before); s.State != cri.ContainerState_CONTAINER_RUNNING || info["pid"] != 7 {
		t.Errorf("before: %s with code %d, pid %v", s.State, s.ExitCode, info["pid"])
	}
	s, info, err := (&Containers{p}).Verbose(c.id)
	if err != nil || s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 3 || info["pid"] != 0 {
		t.Errorf("after: %s with code %d, pid %v, %v", s.GetState(), s.GetExitCode(), info["pid"], err)
	}
}
