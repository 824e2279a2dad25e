package shim

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkLog moves 200 MB in lines of 100 bytes from a container into its log (TARGETS: at least 350 MB/s of payload with
// at most 0.30 s of CPU).
func BenchmarkLog(b *testing.B) {
	const size = 200 << 20
	line := append(bytes.Repeat([]byte("x"), 99), '\n')
	big := filepath.Join(rootfs, "etc", "big")
	if err := os.WriteFile(big, bytes.Repeat(line, size/len(line)), 0o644); err != nil {
		b.Fatal(err)
	}
	defer os.Remove(big)
	p := newPod(b)
	for b.Loop() {
		id := p.create(shell("exec cat /etc/big"))
		cpu := cpuTime(b, p.self.PID)
		begin := time.Now()
		p.start(id)
		p.wait(id)
		took := time.Since(begin)
		b.ReportMetric(float64(size)/1e6/took.Seconds(), "MB/s")
		b.ReportMetric((cpuTime(b, p.self.PID) - cpu).Seconds(), "cpu-s/200MB")
		data, err := os.ReadFile(p.logPath(id))
		if lines := bytes.Count(data, line); err != nil || lines != size/len(line) {
			b.Errorf("log holds %d of %d lines: %v", lines, size/len(line), err)
		}
		os.Remove(p.logPath(id))
	}
}

// cpuTime is what the threads of a process have run (/proc/PID/task/*/schedstat, nanoseconds).
func cpuTime(t testing.TB, pid int) (total time.Duration) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		n, _ := strconv.ParseInt(strings.Fields(string(data))[0], 10, 64)
		total += time.Duration(n)
	}
	return total
}

// BenchmarkExec is a probe's way through the shim; what it takes beyond runc itself is ours.
func BenchmarkExec(b *testing.B) {
	p := newPod(b)
	id := p.run(shell("exec sleep 1000"))
	for b.Loop() {
		if _, x, err := p.exec("true", id); err != nil || x.Code != 0 {
			b.Fatal(x, err)
		}
	}
}

// BenchmarkMemory reports the proportional set size of idle shims with one and with two containers.
func BenchmarkMemory(b *testing.B) {
	const pods = 20
	for b.Loop() {
		var all []*pod
		for range pods {
			p := newPod(b)
			p.run(shell("echo hello; exec sleep 1000"))
			all = append(all, p)
		}
		time.Sleep(2 * keepBuffers)
		one := meanPSS(b, all)
		for _, p := range all {
			p.run(shell("echo hello; exec sleep 1000"))
		}
		time.Sleep(2 * keepBuffers)
		b.ReportMetric(one, "KiB/pod")
		b.ReportMetric(meanPSS(b, all)-one, "KiB/container")
		for range 30 {
			for _, p := range all {
				p.exec("true", "c1-"+filepath.Base(filepath.Dir(p.config.Dir)))
			}
		}
		b.ReportMetric(meanPSS(b, all), "KiB/pod-after-execs")
	}
}

func meanPSS(t testing.TB, pods []*pod) float64 {
	total := 0
	for _, p := range pods {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.self.PID))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(data), "Pss:")
		kib, err := strconv.Atoi(strings.Fields(rest)[0])
		if err != nil {
			t.Fatal(err)
		}
		total += kib
	}
	return float64(total) / float64(len(pods))
}
