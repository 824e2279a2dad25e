package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// churnEnv sets how many pods TestChurn makes and removes; 1000 takes a few minutes.
const churnEnv = "EVENKEEL_TEST_CHURN"

// TestChurn makes and removes pods, eight at a time, and compares what the daemon holds with what it held before; what the
// machine holds is noLeftovers' part. The first fifth warms caches up: memory is compared from there.
func TestChurn(t *testing.T) {
	pods := engine.Rounds(80, 20)
	if n, err := strconv.Atoi(os.Getenv(churnEnv)); err == nil {
		pods = n
	}
	n := start(t, "builtin")
	n.pull(busybox)
	n.churn(pods / 5)
	n.noLeftovers()
	before := holdings(t, n.PID())
	n.churn(pods - pods/5)
	n.noLeftovers()
	var after map[string]int
	done := time.Now()
	n.eventually(time.Minute, func() error { // the last calls to shims that have ended are still being closed, and an idle heap shrinks after minutes
		after = holdings(t, n.PID())
		for what, count := range before {
			if grown := after[what] - count; grown > slack[what] {
				return fmt.Errorf("%s: %d before, %d after %d pods", what, count, after[what], pods)
			}
		}
		return nil
	})
	measured(t, "%d pods made and removed, 8 at a time: %v before, %v %s after the last", pods, before, after, time.Since(done).Round(time.Millisecond))
}

// slack is how much may come and go without meaning anything: threads and heap that Go keeps for a while.
var slack = map[string]int{"threads": 8, "descriptors": 4, "anonymous KiB": 4096}

func (n *node) churn(pods int) {
	n.t.Helper()
	var work errgroup.Group
	work.SetLimit(8)
	for i := range pods {
		work.Go(func() error {
			p, err := n.webPod(fmt.Sprintf("churn%d", i))
			if err != nil {
				return err
			}
			_, err = n.Runtime.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: p.pod})
			if err == nil {
				_, err = n.Runtime.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: p.pod})
			}
			return err
		})
	}
	must(n.t, work.Wait())
}

// holdings counts what the daemon has open and how much memory of its own it has.
func holdings(t *testing.T, pid int) map[string]int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	must(t, err)
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	must(t, err)
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	must(t, err)
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	must(t, err)
	return map[string]int{"descriptors": len(fds), "threads": len(threads), "anonymous KiB": kib}
}
