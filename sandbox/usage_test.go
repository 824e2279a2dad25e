package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// du counts as du(1) does, which counts hard links once, too.
func du(t *testing.T, dir string, args ...string) uint64 {
	t.Helper()
	out, err := exec.Command("du", append(append([]string{"-s"}, args...), dir)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestOccupiedCountsWhatDuCounts(t *testing.T) {
	dir := t.TempDir()
	for i := range 300 {
		sub := filepath.Join(dir, strconv.Itoa(i%7), strconv.Itoa(i))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, "f"), make([]byte, i*100), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	links := []error{
		os.Link(filepath.Join(dir, "5/299/f"), filepath.Join(dir, "again")),
		os.Symlink("/", filepath.Join(dir, "away")), // never followed
		os.Symlink(".", filepath.Join(dir, "round")),
	}
	for _, err := range links {
		if err != nil {
			t.Fatal(err)
		}
	}
	bytes, inodes, err := occupied(dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := du(t, dir, "--block-size=1"); bytes != want {
		t.Errorf("%d bytes, du says %d", bytes, want)
	}
	if want := du(t, dir, "--inodes"); inodes != want {
		t.Errorf("%d inodes, du says %d", inodes, want)
	}
	if _, _, err := occupied(filepath.Join(dir, "away")); err == nil {
		t.Error("a layer that is a link was followed")
	}
}

// TestOccupiedStandsDeepTrees: a path that is longer than paths may be ends the descent, not the count.
func TestOccupiedStandsDeepTrees(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for range 100 {
		if err == nil {
			err = unix.Mkdirat(fd, strings.Repeat("d", 100), 0o755)
		}
		below, openErr := unix.Openat(fd, strings.Repeat("d", 100), unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err = errors.Join(err, openErr); err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = below
	}
	unix.Close(fd)
	_, inodes, err := occupied(dir)
	if err != nil || inodes < 35 || inodes > 101 {
		t.Errorf("%d inodes, %v", inodes, err)
	}
}

// TestOccupiedStandsWideTrees: a container must not be able to use up the engine's memory with directories.
func TestOccupiedStandsWideTrees(t *testing.T) {
	dir := t.TempDir()
	for i := range 2000 {
		if err := os.Mkdir(filepath.Join(dir, strconv.Itoa(i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w, err := beginWalk(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(w.root)
	most := 0
	for w.step() {
		waiting := 0
		for _, at := range w.way {
			waiting += len(at.below)
		}
		most = max(most, waiting)
	}
	if w.inodes != 2001 || most > 400 {
		t.Errorf("%d inodes counted, want 2001; up to %d directories were remembered", w.inodes, most)
	}
}

// Inodes with several names are remembered up to a limit, and counted right beyond it.
func TestOccupiedStandsManyLinks(t *testing.T) {
	dir := t.TempDir()
	for i := range 60 {
		file := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(file, make([]byte, 100*i), 0o644); err != nil {
			t.Fatal(err)
		}
		for j := range 1 + i%3 {
			if err := os.Link(file, fmt.Sprint(file, "-", j)); err != nil {
				t.Fatal(err)
			}
		}
	}
	w, err := beginWalk(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(w.root)
	w.limit = 10
	for w.step() {
	}
	if bytes, inodes := w.total(); inodes != 61 || bytes != du(t, dir, "--block-size=1") || len(w.linked) > 10 {
		t.Errorf("counted %d bytes and %d inodes, want %d and 61; %d are remembered", bytes, inodes, du(t, dir, "--block-size=1"), len(w.linked))
	}
}

func TestLayersAreCountedInTheBackground(t *testing.T) {
	p := emptyPods(t)
	_, containers := enter(t, p, "web", 20)
	for _, c := range containers {
		upper := filepath.Join(c.containerRoot(c.id), "upper")
		if err := os.MkdirAll(upper, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(upper, "f"), make([]byte, 1<<20), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range containers {
		if first := c.writableLayer(); first.InodesUsed.Value != 1 || first.FsId.Mountpoint != p.Root {
			t.Errorf("before the first count: %v", first)
		}
	}
	deadline := time.Now().Add(time.Minute)
	for _, c := range containers {
		for c.usage.layer.Load() == nil && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		if got := c.writableLayer(); got.InodesUsed.Value != 2 || got.UsedBytes.Value < 1<<20 {
			t.Errorf("counted %v", got)
		}
		if c.usage.asked.Load() && time.Since(c.usage.layer.Load().at) < usageMaxAge/2 {
			t.Errorf("a fresh count is asked for again")
		}
	}
}

func TestCPURate(t *testing.T) {
	var r cpuRate
	begin := time.Now()
	if got := r.at(begin, 1000); got != nil {
		t.Errorf("the first sample has rate %v", got)
	}
	if got := r.at(begin.Add(time.Millisecond), 9e9); got != nil {
		t.Errorf("a window of 1 ms has rate %v", got)
	}
	if got := r.at(begin.Add(2*time.Second), 1000+3e9); got.GetValue() != 15e8 {
		t.Errorf("3 s of CPU in 2 s are %v", got)
	}
	if got := r.at(begin.Add(2*time.Second+time.Millisecond), 9e9); got.GetValue() != 15e8 {
		t.Errorf("a second client gets %v", got)
	}
	if got := r.at(begin.Add(4*time.Second), 5); got != nil {
		t.Errorf("a counter that went back has rate %v", got)
	}
}

func TestParseNetDev(t *testing.T) {
	got := parseNetDev(`Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  net1:    2000       3    1    4    0     0          0         0     1000      10    5    6    0     0       0          0
  eth0: 1234567      89    0    2    0     0          0         0      765       9    0    1    0     0       0          0
`)
	want := []interfaceCounters{
		{"eth0", 1234567, 89, 0, 2, 765, 9, 0, 1},
		{"net1", 2000, 3, 1, 4, 1000, 10, 5, 6},
	}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %+v", got)
	}
	usage := networkUsage(got, time.Now())
	if usage.DefaultInterface.Name != "eth0" || len(usage.Interfaces) != 1 || usage.Interfaces[0].TxErrors.Value != 5 {
		t.Errorf("usage %v", usage)
	}
	if networkUsage(nil, time.Now()) != nil {
		t.Error("a pod on the node's network has usage of its own")
	}
}
