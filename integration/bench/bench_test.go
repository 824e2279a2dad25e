package main

import (
	"context"
	"math"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// TestQuickRound measures every row on Evenkeel, in small, so that the benchmark does not rot between two runs.
func TestQuickRound(t *testing.T) {
	bin, err := engine.Binaries()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	numbers, err := run(ctx, options{Bin: bin, Networks: "builtin"}.quick())
	if err != nil {
		t.Fatal(err)
	}
	_, err = exec.LookPath("strace")
	counted := err == nil
	for _, row := range rows {
		values := numbers[row.name]["evenkeel builtin"]
		if wanted := counted || row.name != syncRow && row.name != execsRow; len(values) != 1 && wanted {
			t.Errorf("%q has %d values, want one", row.name, len(values))
		}
	}
}

func TestCountCalls(t *testing.T) {
	c, err := countCalls(strings.NewReader(`100 execve("/usr/bin/evenkeel-shim", ["/usr/bin/evenkeel-shim", "serve"], 0xc000 /* 5 vars */ <unfinished ...>
101 fsync(7 <unfinished ...>
100 <... execve resumed>) = 0
101 <... fsync resumed>)               = 0
102 execve("/usr/bin/runc", ["runc", "create"], 0xc000 /* 5 vars */) = -1 ENOENT (No such file or directory)
102 execve("/bin/runc", ["runc", "create"], 0xc000 /* 5 vars */) = 0
103 execveat(7, "", ["/proc/self/exe", "init"], 0xc000 /* 5 vars */, AT_EMPTY_PATH) = 0
104 execve("/bin/sleep", ["sleep", "1"], 0xc000 /* 5 vars */) = 0
105 fdatasync(9) = 0
105 --- SIGURG {si_signo=SIGURG, si_code=SI_TKILL, si_pid=1, si_uid=0} ---
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.syncs != 2 || c.String() != "1 evenkeel-shim, 1 exe, 1 runc" {
		t.Errorf("%d syncs, execs %s", c.syncs, c)
	}
}

func TestGoalsAndShares(t *testing.T) {
	less, more := row{builtin: 4, cni: 22}, row{builtin: 100, more: true}
	if got := less.against(2, less.goal("evenkeel builtin", nil)); got != 0.5 {
		t.Errorf("half the time is %v of the goal", got)
	}
	if got := more.against(200, more.goal("evenkeel builtin", nil)); got != 0.5 {
		t.Errorf("twice the rate is %v of the goal", got)
	}
	if zero := (row{}); zero.against(0, 0) != 1 || !math.IsInf(zero.against(3, 0), 1) {
		t.Error("a goal of 0 is met by 0 alone")
	}
	if goal := less.goal("evenkeel cni", nil); goal != 22 {
		t.Errorf("goal %v on cni", goal)
	}
	peer := row{name: "pull", ofPeer: 0.5, builtin: none}
	if goal := peer.goal("evenkeel builtin", results{"pull": {peerName: {1, 4, 9}}}); goal != 2 {
		t.Errorf("half of the peer's median is %v", goal)
	}
	if !math.IsNaN(peer.goal("evenkeel builtin", results{})) {
		t.Error("a goal without the peer that it is a share of")
	}
}
