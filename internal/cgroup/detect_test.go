package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const hybrid = `31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
70 60 0:35 /docker/1 /var/lib/x/memory rw - cgroup cgroup rw,memory
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset,clone_children
35 31 0:35 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
38 31 0:38 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
42 31 0:39 / /sys/fs/cgroup/elogind rw - cgroup cgroup rw,name=elogind
41 31 0:40 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
`

var controllers = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t3\t1\t1\ncpu\t1\t1\t1\ncpuacct\t1\t1\t1\nmemory\t4\t14\t1\nblkio\t1\t1\t1\nhugetlb\t0\t1\t1\n"

func parsed(t *testing.T, mounts string) *Tree {
	t.Helper()
	infos, err := mountinfo.GetMountsFromReader(strings.NewReader(mounts), mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		t.Fatal(err)
	}
	known, err := parseControllers(strings.NewReader(controllers))
	if err != nil {
		t.Fatal(err)
	}
	return fromMounts(infos, known)
}

func TestHybrid(t *testing.T) {
	tree := parsed(t, hybrid)
	if tree.V2 {
		t.Error("a hybrid machine is taken for v2")
	}
	want := []string{"cpu,cpuacct", "cpuset", "memory", "blkio", "systemd", "unified"}
	for i, name := range want {
		want[i] = "/sys/fs/cgroup/" + name + "/pod/1"
	}
	if got := tree.Dirs("/pod/1"); !reflect.DeepEqual(got, want) {
		t.Errorf("directories\n got %v\nwant %v", got, want)
	}
	for name, want := range map[string]bool{"cpu": true, "cpuacct": true, "cpuset": true, "memory": true, "io": true, "hugetlb": false, "pids": false, "name=systemd": false} {
		if got := tree.HasController(name); got != want {
			t.Errorf("controller %s: %v, want %v", name, got, want)
		}
	}
	if got := tree.MemoryDir("/pod/1"); got != "/sys/fs/cgroup/memory/pod/1" {
		t.Errorf("memory directory %q", got)
	}
}

func TestOtherMachines(t *testing.T) {
	v1 := parsed(t, strings.Join(strings.Split(hybrid, "\n")[:7], "\n")+"\n")
	if v1.V2 || v1.unifiedDir("/a") != "" {
		t.Errorf("v1 alone: %+v", v1)
	}
	v2 := parsed(t, "30 20 0:40 / /other rw - cgroup2 cgroup2 rw\n31 23 0:41 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n")
	if !v2.V2 || !reflect.DeepEqual(v2.Dirs("a"), []string{"/sys/fs/cgroup/a"}) {
		t.Errorf("v2: %+v", v2)
	}
	named := parsed(t, "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n31 23 0:41 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
	if !named.V2 || len(named.Dirs("a")) != 1 {
		t.Errorf("v2 with a named v1 hierarchy beside it: %+v", named)
	}
	elsewhere := parsed(t, "41 31 0:40 / /mnt/unified rw - cgroup2 cgroup2 rw\n35 31 0:35 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n")
	if elsewhere.V2 || len(elsewhere.Dirs("a")) != 1 {
		t.Errorf("v1 with v2 mounted where runtimes do not look: %+v", elsewhere)
	}
}

// fakeV2 is a v2 hierarchy of plain files, for what only their content decides.
func fakeV2(t *testing.T, files map[string]string) *Tree {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return &Tree{V2: true, hierarchies: []hierarchy{{mount: root, unified: true}}, controllers: map[string]bool{}}
}

func TestV2Controllers(t *testing.T) {
	tree := fakeV2(t, map[string]string{"cgroup.controllers": "cpuset cpu io memory hugetlb pids\n"})
	if err := tree.readControllers(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"cpu": true, "io": true, "blkio": true, "devices": true, "freezer": true, "hugetlb": true, "rdma": false} {
		if got := tree.HasController(name); got != want {
			t.Errorf("controller %s: %v, want %v", name, got, want)
		}
	}
}

func TestV2EnablesControllers(t *testing.T) {
	tree := fakeV2(t, map[string]string{
		"cgroup.controllers": "cpu memory pids\n", "cgroup.subtree_control": "memory\n",
		"a/cgroup.controllers": "cpu\n", "a/cgroup.subtree_control": "cpu\n",
	})
	if err := tree.Create("/a/b"); err != nil {
		t.Fatal(err)
	}
	root := tree.hierarchies[0].mount
	if got, _ := os.ReadFile(filepath.Join(root, "cgroup.subtree_control")); !strings.HasPrefix(string(got), "+cpu +pids") {
		t.Errorf("the root got %q", got)
	}
	if got, _ := os.ReadFile(filepath.Join(root, "a/cgroup.subtree_control")); string(got) != "cpu\n" {
		t.Errorf("/a got %q, and has all it can have", got)
	}
}

// A cgroup that is removed while it is read has no statistics, rather than some that are zero.
func TestRemovedWhileRead(t *testing.T) {
	v2 := fakeV2(t, map[string]string{"c/memory.current": "10000\n"})
	root := t.TempDir()
	v1 := &Tree{hierarchies: []hierarchy{{mount: root + "/cpu", controllers: []string{"cpuacct"}}, {mount: root + "/mem", controllers: []string{"memory"}}}}
	if err := errors.Join(os.MkdirAll(root+"/cpu/c", 0o755), os.MkdirAll(root+"/mem/c", 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		tree        *Tree
		first, goes string
	}{
		{v2, v2.hierarchies[0].mount + "/c/cpu.stat", v2.hierarchies[0].mount + "/c"},
		{v1, root + "/cpu/c/cpuacct.usage", root + "/mem/c"},
	} {
		if err := unix.Mkfifo(test.first, 0o600); err != nil { // holds up the one who reads it
			t.Fatal(err)
		}
		removed := make(chan error, 1)
		go func() {
			fifo, err := os.OpenFile(test.first, os.O_WRONLY, 0)
			removed <- errors.Join(err, os.RemoveAll(test.goes))
			fifo.WriteString("usage_usec 5\n")
			fifo.Close()
		}()
		if s, err := test.tree.Stats("/c"); !errors.Is(err, ErrNotExist) {
			t.Errorf("got %+v, %v", s, err)
		}
		if err := <-removed; err != nil {
			t.Error(err)
		}
	}
}

func TestManyDevices(t *testing.T) {
	var lines strings.Builder
	for i := range 300 {
		fmt.Fprintf(&lines, "253:%d rbytes=1234567890 wbytes=1234567890 rios=1234567890 wios=1234567890 dbytes=0 dios=0\n", i)
	}
	tree := fakeV2(t, map[string]string{"many/io.stat": lines.String()})
	d, err := tree.Details("/many")
	if err != nil || len(d.Devices) != 300 {
		t.Fatalf("%d devices, %v", len(d.Devices), err)
	}
	for i, device := range d.Devices {
		if want := (Device{253, uint32(i), 1234567890, 1234567890, 1234567890, 1234567890}); device != want {
			t.Errorf("device %d is %+v", i, device)
		}
	}
}

func TestV2Stats(t *testing.T) {
	tree := fakeV2(t, map[string]string{
		"full/cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n", "full/pids.current": "7\n",
		"full/memory.current": "10000\n", "full/memory.max": "20000\n", "full/memory.swap.current": "30\n", "full/memory.swap.max": "max\n",
		"full/memory.stat": "anon 4000\nfile 5000\ninactive_file 3000\npgfault 11\npgmajfault 2\n",
		"bare/cpu.stat":    "usage_usec 1\n",
		"less/cpu.stat":    "usage_usec 1\n", "less/memory.current": "10\n", "less/memory.stat": "inactive_file 30\n", "less/memory.max": "max\n",
	})
	limit, swap := uint64(20000), uint64(30)
	for path, want := range map[string]Stats{
		"/full": {CPUUsage: 1_500_000, Processes: 7, Memory: Memory{Usage: 10000, WorkingSet: 7000, RSS: 4000, PageFaults: 11, MajorPageFaults: 2, Limit: &limit, SwapUsage: &swap}},
		"/bare": {CPUUsage: 1000},
		"/less": {CPUUsage: 1000, Memory: Memory{Usage: 10}}, // the counters are not read in one instant
	} {
		if got, err := tree.Stats(path); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", path, got, err, want)
		}
	}
}
