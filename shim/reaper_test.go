package shim

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func newReaper() *reaper {
	return &reaper{claims: map[int]chan<- ending{}, births: map[*birth]struct{}{}}
}

func TestReaperClaims(t *testing.T) {
	r := newReaper()
	r.deliver(ending{pid: 10}) // nobody is starting anything: forgotten
	old := r.begin()
	r.deliver(ending{pid: 10, status: 1 << 8})
	young := r.begin()
	if c := young.claim(10); len(c) != 0 {
		t.Errorf("an ending from before the birth was claimed: %+v", <-c)
	}
	delete(r.claims, 10)
	if c := old.claim(10); len(c) != 1 || (<-c).status.ExitStatus() != 1 {
		t.Error("an ending between birth and claim was lost")
	}
	c := young.claim(20)
	r.deliver(ending{pid: 20, status: 2 << 8})
	if e := <-c; e.status.ExitStatus() != 2 {
		t.Errorf("claimed ending is %+v", e)
	}
	r.deliver(ending{pid: 30})
	old.end()
	if len(r.unclaimed) != 1 {
		t.Errorf("unclaimed: %+v; the younger birth may still want pid 30", r.unclaimed)
	}
	young.end()
	if r.unclaimed != nil || len(r.claims) != 0 {
		t.Errorf("left over: %+v, %+v", r.unclaimed, r.claims)
	}
}

// The score is raised here, since lowering it takes CAP_SYS_RESOURCE: the mechanism is the same.
func TestChildrenDoNotInheritTheOOMScore(t *testing.T) {
	var o oomScore
	o.protect(100)
	if !o.protected {
		t.Fatal("cannot set the score of this process")
	}
	defer setOOMScore(o.inherited)
	var out []byte
	var err error
	o.child(func() { out, err = exec.Command("/bin/busybox", "cat", "/proc/self/oom_score_adj").Output() })
	if err != nil || strings.TrimSpace(string(out)) == "100" {
		t.Errorf("child has score %s, %v", out, err)
	}
	if own, _ := os.ReadFile("/proc/self/oom_score_adj"); strings.TrimSpace(string(own)) != "100" {
		t.Errorf("own score is %s", own)
	}
}

func TestKillTree(t *testing.T) {
	cmd := exec.Command("/bin/busybox", "sh", "-c", "(sleep 987 & sleep 987) & (sh -c 'sleep 987; true'; true) ; true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	all := func(pid int) (tree []Process) {
		for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
			if p, err := processOf(queue[0]); err == nil {
				tree = append(tree, p)
			}
			queue = append(queue, children(queue[0])...)
		}
		return tree
	}
	eventually(t, "the tree has grown", func() bool { return len(all(cmd.Process.Pid)) >= 6 })
	tree := all(cmd.Process.Pid)
	killTree(cmd.Process.Pid)
	cmd.Wait()
	for _, p := range tree {
		eventually(t, "a process of the tree ends", func() bool { return !p.Alive() })
	}
}

func TestAlive(t *testing.T) {
	self, err := processOf(os.Getpid())
	if err != nil || !self.Alive() {
		t.Errorf("%+v, %v", self, err)
	}
	if (Process{PID: self.PID, Start: self.Start + 1}).Alive() || (Process{}).Alive() {
		t.Error("a process that is not is alive")
	}
	cmd := exec.Command("/bin/busybox", "true")
	cmd.Start()
	p, err := processOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); p.Alive() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if p.Alive() {
		t.Error("a zombie is alive")
	}
	cmd.Wait()
}
