package integration

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

const oomLimit = 24 << 20

// Programs that end badly. hog grows until it is killed: tail keeps what has no line end. Each says on stdout how far it came.
const (
	hog     = "tail -n 1 /dev/zero >/dev/null 2>&1"
	execHog = "exec tail -n 1 /dev/zero"
)

// An oomCase is a way for a container to end, and what is to be told about it.
type oomCase struct {
	name   string
	script string
	kill   bool // somebody else sends SIGKILL to the first process once it says "killme"
	stop   bool // the kubelet stops it then
	code   int32
	reason string
	told   bool // the message tells of a victim and the limit
}

var oomCases = []oomCase{
	{name: "init exceeds", script: execHog, code: 137, reason: "OOMKilled", told: true},
	{name: "init exceeds after a child did", script: hog + "; " + execHog, code: 137, reason: "OOMKilled", told: true},
	{name: "child exceeds, init succeeds", script: hog + "; exit 0", code: 0, reason: "Completed", told: true},
	{name: "child exceeds, init fails", script: hog + "; exit 3", code: 3, reason: "Error", told: true},
	{name: "child exceeds, init passes its code on", script: hog + "; exit $?", code: 137, reason: "Error", told: true},
	{name: "child exceeds, then SIGKILL from outside", script: hog + "; echo killme; sleep 1000", kill: true, code: 137, reason: "Error", told: true},
	{name: "child exceeds, then StopContainer", script: hog + "; echo killme; trap '' TERM; while :; do sleep 1; done", stop: true, code: 137, reason: "Error", told: true},
	{name: "SIGKILL from outside", script: "echo killme; sleep 1000", kill: true, code: 137, reason: "Error"},
	{name: "a child is killed by its parent", script: "sleep 1000 & kill -9 $!; wait $!; exit 4", code: 4, reason: "Error"},
	{name: "exits with 137", script: "exit 137", code: 137, reason: "Error"},
}

// TestOOMIsToldExactly tries random cases, several at once, so that victims of different containers mix in the kernel's log.
func TestOOMIsToldExactly(t *testing.T) {
	rounds := engine.Rounds(60, 2*len(oomCases))
	if *long {
		rounds = 300
	}
	n := start(t, "builtin")
	cfg := n.Pod("oom")
	pod := n.runPod(cfg)
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	var mu sync.Mutex
	wrong := 0
	slots := make(chan struct{}, 3)
	var all sync.WaitGroup
	for i := range rounds {
		c := oomCases[i%len(oomCases)]
		if i >= len(oomCases) {
			c = oomCases[random.IntN(len(oomCases))]
		}
		delay := time.Duration(random.IntN(50)) * time.Millisecond
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			if complaint := n.tryOOM(pod, cfg, fmt.Sprint("case", i), c, delay); complaint != "" {
				mu.Lock()
				defer mu.Unlock()
				wrong++
				t.Errorf("%s: %s", c.name, complaint)
			}
		})
	}
	all.Wait()
	measured(t, "OOM: %d cases, %d misattributed (seed %d)", rounds, wrong, seed)
}

func (n *node) tryOOM(pod string, cfg *cri.PodSandboxConfig, name string, c oomCase, delay time.Duration) string {
	container := engine.Container(name, busybox, "sh", "-c", c.script)
	container.Linux.Resources.MemoryLimitInBytes = oomLimit
	id := n.run(pod, cfg, container)
	if c.kill || c.stop {
		n.eventually(20*time.Second, func() error {
			if text, _ := readFile(n.logPath(cfg, container)); !strings.Contains(text, "killme") {
				return fmt.Errorf("it does not get as far as killme: %q", text)
			}
			return nil
		})
		time.Sleep(delay)
	}
	if c.kill {
		syscall.Kill(n.containerPID(id), syscall.SIGKILL)
	}
	if c.stop {
		n.stop(id, 0)
	}
	s := n.awaitState(id, cri.ContainerState_CONTAINER_EXITED)
	told := strings.Contains(s.Message, "the kernel killed") && strings.Contains(s.Message, fmt.Sprint(oomLimit))
	// A first process is always named. For others the kernel says at most ten times in five seconds whose they were, which
	// this test exceeds.
	named := strings.Contains(s.Message, "\"tail\"") || c.reason != "OOMKilled"
	if s.ExitCode != c.code || s.Reason != c.reason || told != c.told || !named {
		return fmt.Sprintf("code %d, reason %s, message %q; want %d, %s, victim told: %v", s.ExitCode, s.Reason, s.Message, c.code, c.reason, c.told)
	}
	n.remove(id)
	return ""
}
