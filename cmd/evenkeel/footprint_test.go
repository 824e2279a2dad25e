package main

import (
	"os"
	"reflect"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
)

func TestUnwrittenRegions(t *testing.T) {
	const smaps = `00400000-016a0000 r-xp 00000000 08:01 131 /usr/bin/evenkeel
Size:              19072 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me sd
016a0000-02e00000 r--p 012a0000 08:01 131 /usr/bin/evenkeel
Anonymous:             4 kB
02e00000-02f00000 rw-p 02a00000 08:01 131 /usr/bin/evenkeel
Anonymous:             0 kB
7f0000000000-7f0000001000 r-xp 00000000 08:01 132 /usr/bin/other
Anonymous:             0 kB
c000000000-c000400000 rw-p 00000000 00:00 0
Anonymous:             0 kB
`
	if got, want := unwritten(strings.NewReader(smaps), "/usr/bin/evenkeel"), []region{{0x400000, 0x16a0000}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

// The pages go, and the program goes on.
func TestShrink(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	mapped := func() int {
		data, err := os.ReadFile("/proc/self/smaps_rollup")
		if err != nil {
			t.Fatal(err)
		}
		kib, err := strconv.Atoi(regexp.MustCompile(`Pss_File:\s+(\d+)`).FindStringSubmatch(string(data))[1])
		if err != nil {
			t.Fatal(err)
		}
		return kib
	}
	before := mapped()
	t.Setenv("GOGC", "")
	if err := shrink(); err != nil {
		t.Fatal(err)
	}
	if after := mapped(); after >= before {
		t.Errorf("%d KiB of files are mapped, %d KiB before", after, before)
	}
	if got := debug.SetGCPercent(100); got != heapGrowth {
		t.Errorf("the heap may grow by %d percent, not %d", got, heapGrowth)
	}
	t.Setenv("GOGC", "100")
	if err := shrink(); err != nil {
		t.Fatal(err)
	}
	if got := debug.SetGCPercent(100); got != 100 {
		t.Errorf("GOGC=100 was overruled by %d", got)
	}
}
