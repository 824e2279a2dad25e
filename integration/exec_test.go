package integration

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// long runs tests at their full length: go test ./integration -run ... -long.
var long = flag.Bool("long", false, "run tests at their full length")

// daemonise forks twice and makes a session: nothing of the process tree leads to the sleeper.
const daemonise = "(setsid sleep 778 </dev/null >/dev/null 2>&1 &)"

func (n *node) probe(id string, timeout int64, script string) (*cri.ExecSyncResponse, error) {
	return n.Runtime.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: timeout})
}

// TestProbesLeaveNoDaemons: what a probe forks away ends with it or at its deadline; a hook's daemons stay.
func TestProbesLeaveNoDaemons(t *testing.T) {
	n := start(t, "builtin")
	_, id := n.up("daemons")
	_, err := n.probe(id, 1, daemonise+"; "+daemonise+"; sleep 779")
	refused(t, err, codes.DeadlineExceeded, "sleep 779")
	if got := n.sleepers(id); got != 0 {
		t.Errorf("%d daemons outlive the deadline of their probe", got)
	}
	r, err := n.probe(id, engine.Seconds(5), daemonise+"; exit 3")
	must(t, err)
	if got := n.sleepers(id); r.ExitCode != 3 || got != 0 {
		t.Errorf("code %d, %d daemons outlive their probe", r.ExitCode, got)
	}
	r, err = n.probe(id, 0, daemonise)
	must(t, err)
	if got := n.sleepers(id); r.ExitCode != 0 || got != 1 {
		t.Errorf("code %d, %d daemons of a hook are there", r.ExitCode, got)
	}
	n.noExecCgroups(id)
}

func (n *node) sleepers(id string) int {
	n.t.Helper()
	count, err := strconv.Atoi(strings.TrimSpace(n.output(id, "sh", "-c", "ps | grep -c '[s]leep 778' || true")))
	must(n.t, err)
	return count
}

func (n *node) noExecCgroups(id string) {
	n.t.Helper()
	root := n.Instance().CgroupRoot
	for _, dir := range engine.CgroupDirs(root) {
		filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			if err == nil && e.IsDir() && strings.HasPrefix(e.Name(), "exec-") {
				n.t.Errorf("cgroup %s is left of an exec", path)
			}
			return nil
		})
	}
}

// TestProbeStorm runs 24 probes a second whose children daemonise, and looks for what grows.
func TestProbeStorm(t *testing.T) {
	pace := engine.Patience(time.Second / 24)
	length := 20 * time.Second
	if *long {
		length = 5 * time.Minute
	}
	n := start(t, "builtin")
	var ids []string
	for i := range 4 {
		_, id := n.up(fmt.Sprint("storm", i))
		ids = append(ids, id)
	}
	shims := n.shimPIDs(ids)
	storm := func(d time.Duration) {
		var all sync.WaitGroup
		running := make(chan struct{}, 24)
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for end, i := time.Now().Add(d), 0; time.Now().Before(end); i++ {
			<-tick.C
			select {
			case running <- struct{}{}:
			default: // this machine cannot keep the pace
				continue
			}
			all.Go(func() {
				defer func() { <-running }()
				if r, err := n.probe(ids[i%len(ids)], engine.Seconds(10), daemonise+"; exit 3"); err != nil || r.ExitCode != 3 {
					t.Errorf("probe: %v, %v", r, err)
				}
			})
		}
		all.Wait()
		time.Sleep(2 * time.Second) // quiet, as between bursts of real probes
	}
	storm(length / 4) // until caches are filled
	before := n.census(shims)
	storm(length)
	after := n.census(shims)
	measured(t, "probe storm of %v: before %+v, after %+v", length, before, after)
	if after.processes > before.processes+2 {
		t.Errorf("processes grew from %d to %d", before.processes, after.processes)
	}
	if after.descriptors > before.descriptors+4 {
		t.Errorf("descriptors grew from %d to %d", before.descriptors, after.descriptors)
	}
	if after.shimPSS > before.shimPSS*3/2+2048 {
		t.Errorf("memory of the shims grew from %d to %d KiB", before.shimPSS, after.shimPSS)
	}
	for _, id := range ids {
		if got := n.sleepers(id); got != 0 {
			t.Errorf("%d daemons are left", got)
		}
	}
	n.noExecCgroups(ids[0])
}

// census counts what may grow: all of the engine's processes with their descendants, what they have open, memory in KiB.
type census struct{ processes, descriptors, shimPSS, daemonPSS int }

func (n *node) census(shims []int) (c census) {
	n.t.Helper()
	for _, pid := range append(slices.Clone(shims), n.PID()) {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		must(n.t, err)
		c.descriptors += len(fds)
	}
	for _, pid := range shims {
		c.processes += descendants(pid)
		c.shimPSS += pss(n.t, pid)
	}
	c.daemonPSS = pss(n.t, n.PID())
	return c
}

func (n *node) shimPIDs(containers []string) (pids []int) {
	n.t.Helper()
	for _, id := range containers {
		pids = append(pids, parentOf(n.containerPID(id)))
	}
	return pids
}

// containerPID is the container's first process.
func (n *node) containerPID(id string) int {
	n.t.Helper()
	r, err := n.Runtime.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	must(n.t, err)
	var info struct{ PID int }
	must(n.t, json.Unmarshal([]byte(r.Info["info"]), &info))
	return info.PID
}

func parentOf(pid int) int {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	parent, _ := strconv.Atoi(fields[1])
	return parent
}

// descendants counts a process and all below it.
func descendants(pid int) int {
	total := 1
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		data, _ := os.ReadFile(task)
		for _, field := range strings.Fields(string(data)) {
			child, _ := strconv.Atoi(field)
			total += descendants(child)
		}
	}
	return total
}

func pss(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	must(t, err)
	_, rest, _ := strings.Cut(string(data), "\nPss:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	must(t, err)
	return kib
}

// TestFiveHundredExecsAtOnce, in one container and over ten.
func TestFiveHundredExecsAtOnce(t *testing.T) {
	at := engine.Rounds(500, 50)
	n := start(t, "builtin")
	var ids []string
	for i := range 10 {
		_, id := n.up(fmt.Sprint("many", i))
		ids = append(ids, id)
	}
	for _, over := range []int{1, len(ids)} {
		t.Run(fmt.Sprint("over ", over, " pods"), func(t *testing.T) {
			begin := time.Now()
			var all sync.WaitGroup
			for i := range at {
				all.Go(func() {
					r, err := n.probe(ids[i%over], engine.Seconds(55), fmt.Sprintf("echo %d; exit %d", i, i%100))
					if err != nil || int(r.ExitCode) != i%100 || string(r.Stdout) != fmt.Sprintln(i) {
						t.Errorf("exec %d: %v, %v", i, r, err)
					}
				})
			}
			all.Wait()
			measured(t, "%d execs at once over %d pods: %v", at, over, time.Since(begin).Round(time.Millisecond))
		})
	}
	n.noExecCgroups(ids[0])
}

// TestExecLatency reports; machines differ too much for a limit.
func TestExecLatency(t *testing.T) {
	n := start(t, "builtin")
	_, id := n.up("latency")
	var took []time.Duration
	for range engine.Rounds(60, 10) {
		begin := time.Now()
		_, err := n.Runtime.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: engine.Seconds(10)})
		must(t, err)
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	begin := time.Now()
	var all sync.WaitGroup
	each := engine.Rounds(50, 10)
	for range 4 {
		all.Go(func() {
			for range each {
				n.Runtime.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: engine.Seconds(10)})
			}
		})
	}
	all.Wait()
	measured(t, "ExecSync of true: p50 %v, %.0f per second with 4 at once", took[len(took)/2], float64(4*each)/time.Since(begin).Seconds())
}
