package cgroup

import (
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

func TestParseStall(t *testing.T) {
	got := parseStall([]byte("avg10=1.25 avg60=0.50 avg300=0.01 total=123456"))
	if want := (Stall{Avg10: 1.25, Avg60: 0.5, Avg300: 0.01, Total: 123456}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestParseDevices(t *testing.T) {
	v2 := "253:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n7:1 \n8:16 rbytes=1 wbytes=0 rios=1 wios=0\n"
	want := []Device{{253, 0, 4096, 8192, 1, 2}, {8, 16, 1, 0, 1, 0}}
	if got := parseIOStat([]byte(v2)); !reflect.DeepEqual(got, want) {
		t.Errorf("io.stat: %+v", got)
	}
	devices := map[string]*Device{}
	parseBlkio(devices, []byte("253:0 Read 4096\n253:0 Write 8192\n253:0 Sync 12288\n253:0 Total 12288\nTotal 12288\n"),
		func(d *Device) (read, write *uint64) { return &d.ReadBytes, &d.WriteBytes })
	if d := devices["253:0"]; len(devices) != 1 || d == nil || *d != (Device{Major: 253, ReadBytes: 4096, WriteBytes: 8192}) {
		t.Errorf("blkio: %+v", devices)
	}
}

func TestHugePageSize(t *testing.T) {
	for entry, want := range map[string]string{"hugepages-2048kB": "2MB", "hugepages-1048576kB": "1GB", "hugepages-64kB": "64KB", "hugepages-16777216kB": "16GB"} {
		if got := hugePageSize(entry); got != want {
			t.Errorf("%s: %s, want %s", entry, got, want)
		}
	}
}

// TestDetailsAgreeWithTheKernel compares with the files themselves, whatever version this machine has.
func TestDetailsAgreeWithTheKernel(t *testing.T) {
	tree := detect(t)
	path := testPath(t, tree)
	if err := tree.Create(path); err != nil {
		t.Fatal(err)
	}
	run(t, tree, path, "x=$(head -c 8000000 /dev/zero | tr '\\0' x); i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; sleep 1000")
	var d Details
	eventually(t, "user and system time are used", func() bool {
		var err error
		d, err = tree.Details(path)
		return err == nil && d.CPUUser > 0 && d.CPUSystem > 0 && d.MaxUsage > 8_000_000
	})
	const ticks = 1e8 // v1 counts user and system time in ticks of the clock, and may miss a few on a busy machine
	if sum := d.CPUUser + d.CPUSystem; sum > d.CPUUsage+d.CPUUsage/5+ticks || sum+ticks < d.CPUUsage/2 {
		t.Errorf("user %d and system %d make no %d", d.CPUUser, d.CPUSystem, d.CPUUsage)
	}
	if d.MaxUsage < d.Memory.Usage || d.ThreadsMax != 0 || d.OOMKills != 0 || d.LocalFaults == 0 {
		t.Errorf("details: %+v", d)
	}
	dir := tree.unifiedDir(path)
	data, err := os.ReadFile(filepath.Join(dir, "memory.pressure"))
	if dir == "" || err != nil {
		t.Logf("this kernel measures no pressure: %v", err)
		return
	}
	_, text, _ := strings.Cut(strings.SplitN(string(data), "\n", 2)[0], "total=")
	total, err := strconv.ParseUint(text, 10, 64)
	if err != nil || d.MemoryPressure == nil || d.MemoryPressure.Some.Total > total {
		t.Errorf("pressure %+v; the kernel says %s", d.MemoryPressure, data)
	}
	if d.CPUPressure == nil || d.IOPressure == nil || d.CPUPressure.Some.Total < d.CPUPressure.Full.Total {
		t.Errorf("pressure: cpu %+v, io %+v", d.CPUPressure, d.IOPressure)
	}
}
