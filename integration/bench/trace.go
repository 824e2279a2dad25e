package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// traced counts what one pod's life asks of the disk and which programs it runs: strace follows every thread of the
// daemon, and every process that comes of it, through one cycle.
func (s *session) traced(ctx context.Context) error {
	if _, err := exec.LookPath("strace"); err != nil {
		fmt.Fprintln(os.Stderr, "strace is not installed: execs and syncs are not counted")
		return nil
	}
	file := filepath.Join(s.LogDir(), "strace")
	defer os.Remove(file)
	stop, err := strace(ctx, s.PID(), file)
	if err != nil {
		return err
	}
	err = s.cycle(ctx, map[string][]float64{})
	stop()
	if err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := countCalls(f)
	s.add(syncRow, float64(c.syncs))
	s.add(execsRow, float64(c.total()))
	fmt.Fprintln(os.Stderr, "  execs:", c)
	return err
}

// strace attaches to a process; it is attached to all threads when strace returns. stop detaches.
func strace(ctx context.Context, pid int, file string) (stop func(), err error) {
	// No context: strace lets go of its tracees on SIGINT, and SIGKILL could take one with it.
	cmd := exec.Command("strace", "-f", "-qq", "-s", "120", "-o", file, "-p", fmt.Sprint(pid),
		"-e", "trace=execve,execveat,fsync,fdatasync,sync,syncfs,sync_file_range")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		cmd.Process.Signal(syscall.SIGINT)
		cmd.Wait()
	}
	for begin := time.Now(); !attached(pid); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > 5*time.Second || ctx.Err() != nil {
			stop()
			return nil, fmt.Errorf("strace cannot attach to process %d", pid)
		}
	}
	return stop, nil
}

func attached(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, t := range threads {
		if field(t, "TracerPid:") == 0 {
			return false
		}
	}
	return len(threads) > 0
}

// calls that were traced.
type calls struct {
	syncs    int
	programs map[string]int // by the name they were called by
}

// workload is what the benchmark itself asked for in the pod: its container and its exec.
var workload = []string{"sleep", "true", "sh"}

func (c calls) total() (n int) {
	for _, count := range c.programs {
		n += count
	}
	return n
}

func (c calls) String() string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(c.programs)) {
		list = append(list, fmt.Sprintf("%d %s", c.programs[name], name))
	}
	return strings.Join(list, ", ")
}

// A line begins with the thread; a call that another thread's line interrupts ends in a line of its own.
var (
	execLine    = regexp.MustCompile(`^(\d+) +execve(?:at)?\((?:[^"]*, )?"([^"]*)", \["([^"]*)"`)
	resumedLine = regexp.MustCompile(`^(\d+) +<\.\.\. execve(?:at)? resumed>`)
	syncLine    = regexp.MustCompile(`^\d+ +(fsync|fdatasync|sync|syncfs|sync_file_range)\(`)
)

// countCalls reads what strace wrote. An exec counts when it succeeded.
func countCalls(r io.Reader) (calls, error) {
	c := calls{programs: map[string]int{}}
	waiting := map[string]string{} // program by thread
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if syncLine.MatchString(line) {
			c.syncs++
		}
		name := ""
		if m := execLine.FindStringSubmatch(line); m != nil {
			name = filepath.Base(m[3])
			waiting[m[1]] = name
		} else if m := resumedLine.FindStringSubmatch(line); m != nil {
			name = waiting[m[1]]
		}
		if name != "" && strings.HasSuffix(line, "= 0") && !slices.Contains(workload, name) && !strings.HasSuffix(pauseProgram, name) {
			c.programs[name]++
		}
	}
	return c, lines.Err()
}
