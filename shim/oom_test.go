package shim

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const mib = 1 << 20

func limited(script string) *box {
	b := shell(script)
	b.change = func(spec map[string]any) {
		spec["linux"].(map[string]any)["resources"] = map[string]any{"memory": map[string]any{"limit": 16 * mib}}
	}
	return b
}

// hog grows past any limit: tail keeps what has no line end. It is alone and the kernel's first choice, since others that
// allocate while a victim still holds its memory bring about a second kill, which may take the shell.
const hog = "(echo 1000 > /proc/self/oom_score_adj; exec tail -n 1 /dev/zero >/dev/null)"

func TestOOMOfAChild(t *testing.T) {
	p := newPod(t)
	id := p.run(limited(hog + "; exit 3"))
	x := p.wait(id)
	if x.OOMKilled || x.Code != 3 || x.OOM == nil {
		t.Fatalf("exit is %+v, %+v", x, x.OOM)
	}
	if o := *x.OOM; o.Kills != 1 || o.Limit != 16*mib || o.Group != "" || o.Victim != "tail" {
		t.Errorf("told is %+v", o)
	}
}

func TestSIGKILLAfterOOMOfAChild(t *testing.T) {
	p := newPod(t)
	id := p.run(limited(hog + "; echo survived; sleep 1000"))
	eventually(t, "the child is killed", func() bool { return strings.Contains(p.content(id), "survived") })
	unix.Kill(p.process(id).PID, unix.SIGKILL) // not through the shim, which would remember
	if x := p.wait(id); x.OOMKilled || x.Code != 137 || x.OOM == nil || x.OOM.Victim != "tail" {
		t.Errorf("exit is %+v, %+v", x, x.OOM)
	}
}

func TestOOMOfTheFirstProcess(t *testing.T) {
	p := newPod(t)
	id := p.run(limited("head -c 64000000 /dev/zero > /tmp/fifo & exec tail -n 1 /dev/zero"))
	x := p.wait(id)
	if !x.OOMKilled || x.Code != 137 || x.OOM == nil {
		t.Fatalf("exit is %+v, %+v", x, x.OOM)
	}
	if o := *x.OOM; o.Limit != 16*mib || o.Victim != "tail" || o.PID != p.process(id).PID {
		t.Errorf("told is %+v", o)
	}
}

func (p *pod) process(id string) Process {
	s, err := p.State(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	for _, c := range s.Containers {
		if c.ID == id {
			return c.Process
		}
	}
	p.t.Fatalf("the shim has no container %s", id)
	return Process{}
}

func TestKernelLog(t *testing.T) {
	var l kernelLog
	for _, record := range []string{
		"6,0,1000000,-;Linux version 6.12",
		"4,7,2000000,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,mems_allowed=0,oom_memcg=/pod,task_memcg=/pod/a,b,task=my prog,pid=77,uid=0",
		"3,8,2000100,-;Memory cgroup out of memory: Killed process 77 (my prog) total-vm:1kB, anon-rss:2kB",
		"3,9,3000000,-;Memory cgroup out of memory: Killed process 78 (a) (b) total-vm:1kB\n SUBSYSTEM=x",
		"4,10,4000000,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/pod/c,task=x,pid=79,uid=0",
		"3,11,4000001,c;Out of memory: Killed process 79 (x) total-vm:1kB",
		"3,12,5000000,-;nothing of the kind",
	} {
		l.record([]byte(record))
	}
	want := oomVictims{{77, "my prog", "/pod/a,b", "/pod"}, {78, "a) (b", "", ""}, {79, "x", "/pod/c", "/"}}
	got := l.after(0)
	if len(got) != len(want) {
		t.Fatalf("got %+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("victim %+v, want %+v", got[i], want[i])
		}
	}
	if late := l.after(2500 * time.Millisecond); len(late) != 2 {
		t.Errorf("victims after 2.5 s: %+v", late)
	}
	if !l.whole || !l.reachesBack(0) {
		t.Error("a log from its first record on is whole")
	}
}

func TestVictimsCgroup(t *testing.T) {
	w := oomWatch{dirs: []string{"/sys/fs/cgroup/memory/pod/c1"}}
	for group, want := range map[string]bool{"/pod/c1": true, "/pod/c1/exec-1": true, "/pod/c2": false, "/": false, "/c1": true, "/pod": false} {
		if got := w.owns(group); got != want {
			t.Errorf("%s: %v", group, got)
		}
	}
	if root, ok := w.rootOf("/pod/c1"); !ok || root != filepath.Join("/sys/fs/cgroup", "memory") {
		t.Errorf("the hierarchy is at %q, %v", root, ok)
	}
}
