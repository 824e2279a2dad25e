package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLineFormatter(t *testing.T) {
	k := func(n int) string { return strings.Repeat("a", n) }
	for _, test := range []struct {
		name  string
		reads []string
		want  []string // without time and stream
	}{
		{"lines", []string{"one\ntwo\n"}, []string{"F one", "F two"}},
		{"empty line", []string{"\n\nx\n"}, []string{"F ", "F ", "F x"}},
		{"line in pieces", []string{"o", "n", "e\nt", "wo\n"}, []string{"F one", "F two"}},
		{"no end", []string{"one\ntwo"}, []string{"F one", "F two"}},
		{"carriage return", []string{"one\r\n"}, []string{"F one\r"}},
		{"exactly the limit", []string{k(lineLimit) + "\n"}, []string{"F " + k(lineLimit)}},
		{"exactly the limit, end later", []string{k(lineLimit), "\n"}, []string{"F " + k(lineLimit)}},
		{"exactly the limit, no end", []string{k(lineLimit)}, []string{"F " + k(lineLimit)}},
		{"one more", []string{k(lineLimit) + "b\n"}, []string{"P " + k(lineLimit), "F b"}},
		{"one more, later", []string{k(lineLimit), "b", "\n"}, []string{"P " + k(lineLimit), "F b"}},
		{"three parts", []string{k(2*lineLimit) + "bc\nd\n"}, []string{"P " + k(lineLimit), "P " + k(lineLimit), "F bc", "F d"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got strings.Builder
			l := lineFormatter{stream: "stdout", out: make([]byte, 0, 2*lineLimit), flush: func(b []byte) { got.Write(b) }}
			at := time.Date(2026, 11, 22, 10, 20, 30, 123456789, time.UTC)
			l.stamp(at)
			var rest []byte
			for _, r := range test.reads {
				rest = append([]byte(nil), l.lines(append(rest, r...))...)
			}
			l.last(rest)
			l.write()
			var want strings.Builder
			for _, w := range test.want {
				fmt.Fprintf(&want, "2026-11-22T10:20:30.123456789Z stdout %s\n", w)
			}
			if got.String() != want.String() {
				t.Errorf("got  %.200q\nwant %.200q", got.String(), want.String())
			}
		})
	}
}

func TestLogOfBothStreams(t *testing.T) {
	p := newPod(t)
	id := p.run(shell("echo one; sleep 0.05; echo two >&2; sleep 0.05; printf 'no end'"))
	p.wait(id)
	if got := p.content(id); got != "stdout F one\nstderr F two\nstdout F no end\n" {
		t.Errorf("log is %q", got)
	}
	info, err := os.Stat(p.logPath(id))
	if err != nil || info.Mode() != 0o640 {
		t.Errorf("log has mode %v, %v", info.Mode(), err)
	}
}

func TestLongLines(t *testing.T) {
	p := newPod(t)
	id := p.run(shell("head -c 40000 /dev/zero; echo; echo short"))
	p.wait(id)
	zero := strings.Repeat("\x00", lineLimit)
	want := "stdout P " + zero + "\nstdout P " + zero + "\nstdout F " + zero[:40000-2*lineLimit] + "\nstdout F short\n"
	if got := p.content(id); got != want {
		t.Errorf("log of %d bytes, not %d", len(got), len(want))
	}
}

// A line that has begun when the stream falls silent survives the release of the buffers.
func TestSilenceInALine(t *testing.T) {
	p := newPod(t)
	id := p.run(shell("printf 'begin '; sleep 2.5; echo end"))
	p.wait(id)
	if got := p.content(id); got != "stdout F begin end\n" {
		t.Errorf("log is %q", got)
	}
}

func TestNoPartialRecordsOfShortLines(t *testing.T) {
	p := newPod(t)
	id := p.run(shell("seq 1 300000"))
	p.wait(id)
	log := p.content(id)
	var want strings.Builder
	for i := range 300000 {
		fmt.Fprintf(&want, "stdout F %d\n", i+1)
	}
	if log != want.String() {
		t.Errorf("log of %d bytes differs from the %d expected", len(log), want.Len())
	}
}

// A background process that keeps the pipes does not delay the exit, and does not outlive it for long.
func TestExitWithSurvivors(t *testing.T) {
	p := newPod(t)
	b := shell("setsid sh -c 'sleep 1; echo survivor' & echo last words; exit 4")
	b.change = func(spec map[string]any) { // the host's PID namespace, in which processes outlive the first
		linux := spec["linux"].(map[string]any)
		linux["namespaces"] = []any{map[string]any{"type": "mount"}, map[string]any{"type": "ipc"}}
	}
	begin := time.Now()
	id := p.run(b)
	x := p.wait(id)
	if x.Code != 4 || time.Since(begin) > 900*time.Millisecond {
		t.Errorf("exit is %+v after %v", x, time.Since(begin))
	}
	if got := p.content(id); got != "stdout F last words\n" {
		t.Errorf("log at the exit is %q", got)
	}
	if err := p.Forget(t.Context(), id); err != nil {
		t.Error(err)
	}
	if left := children(p.self.PID); len(left) > 0 {
		t.Errorf("processes %v survive the container", left)
	}
}

func TestDrainGoesOnToTheEnd(t *testing.T) {
	r, w, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "log")
	log, err := openLog(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	o := &stdio{log: log}
	o.outputOver, o.outputEnd = context.WithCancel(t.Context())
	if err := o.addStream("stdout", r); err != nil {
		t.Fatal(err)
	}
	o.run()
	w.WriteString("before\n")
	o.drain(10 * time.Second)
	if data, _ := os.ReadFile(path); !strings.HasSuffix(string(data), "stdout F before\n") {
		t.Errorf("log after drain is %q", data)
	}
	w.WriteString("after\n")
	w.Close()
	<-o.outputOver.Done()
	if data, _ := os.ReadFile(path); !strings.HasSuffix(string(data), "stdout F after\n") {
		t.Errorf("log at the end is %q", data)
	}
}

func TestReopenUnderLoad(t *testing.T) {
	p := newPod(t)
	const lines = 400000
	id := p.run(shell(fmt.Sprintf("seq 1 %d", lines)))
	rotated := 0
	done := make(chan struct{})
	go func() { p.Wait(t.Context(), id); close(done) }()
rotate:
	for {
		select {
		case <-done:
			break rotate
		default:
		}
		if err := os.Rename(p.logPath(id), fmt.Sprintf("%s.%d", p.logPath(id), rotated)); err != nil {
			t.Fatal(err)
		}
		rotated++
		if err := p.ReopenLog(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	p.wait(id)
	t.Logf("rotated %d times", rotated)
	var all strings.Builder
	for i := range rotated {
		data, err := os.ReadFile(fmt.Sprintf("%s.%d", p.logPath(id), i))
		if err != nil {
			t.Fatal(err)
		}
		all.Write(data)
	}
	data, err := os.ReadFile(p.logPath(id))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	all.Write(data)
	n := 0
	for line := range strings.Lines(all.String()) {
		n++
		if _, content, _ := strings.Cut(line, " "); content != fmt.Sprintf("stdout F %d\n", n) {
			t.Fatalf("record %d is %q", n, line)
		}
	}
	if n != lines {
		t.Errorf("%d of %d lines are there", n, lines)
	}
	if rotated < 3 {
		t.Errorf("rotated only %d times", rotated)
	}
}

func TestReopenAfterTheEndOfOutput(t *testing.T) {
	p := newPod(t)
	id := p.run(shell("echo one; exec >/dev/null 2>&1; exec sleep 1000"))
	eventually(t, "its output has ended", func() bool {
		for _, d := range descriptors(t, p.self.PID) {
			if d == p.logPath(id) {
				return false
			}
		}
		return true
	})
	if err := os.Rename(p.logPath(id), p.logPath(id)+".1"); err != nil {
		t.Fatal(err)
	}
	if err := p.ReopenLog(t.Context(), id); err != nil {
		t.Error(err)
	}
	if got := p.log(id); got != "" {
		t.Errorf("the new log holds %q", got)
	}
}

// An error with which the old file is closed is no reason to go back to it.
func TestReopenPastAnErrorOfTheOldFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openLog(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	l.file.Load().Close() // so that another close fails
	os.Rename(path, path+".1")
	if err := l.reopen(t.Context()); err != nil {
		t.Error(err)
	}
	l.write([]byte("new\n"))
	if data, err := os.ReadFile(path); string(data) != "new\n" {
		t.Errorf("the new file holds %q, %v", data, err)
	}
}

// A log whose storage does not answer costs its own container's end and no other call.
func TestForgetWaitsForALogAlone(t *testing.T) {
	r, w, err := pipe() // plays the storage: once full it takes nothing
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	unix.SetNonblock(int(w.Fd()), true)
	for err == nil {
		_, err = unix.Write(int(w.Fd()), make([]byte, 4096))
	}
	unix.SetNonblock(int(w.Fd()), false)
	s := &server{containers: map[string]*container{}, making: map[string]chan struct{}{}}
	o, err := s.openStdio(CreateRequest{LogPath: filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	o.log.file.Swap(w).Close()
	o.log.lose(1, false, nil) // to be told when the log is closed
	c := &container{request: CreateRequest{ID: "c"}, stdio: o, ended: make(chan struct{}), deleted: make(chan struct{})}
	close(c.ended)
	close(c.deleted)
	s.containers["c"] = c
	forgotten := make(chan error, 1)
	go func() { forgotten <- s.forget(t.Context(), "c") }()
	answered := make(chan struct{})
	go func() {
		eventually(t, "it is forgotten", func() bool { return len(s.state().Containers) == 0 })
		close(answered)
	}()
	select {
	case <-answered:
	case <-time.After(5 * time.Second):
		t.Error("the shim is silent while a log is closed")
	}
	unix.Read(int(r.Fd()), make([]byte, 64<<10))
	if err := <-forgotten; err != nil {
		t.Error(err)
	}
	<-answered
}

func TestReopenFailure(t *testing.T) {
	p := newPod(t)
	dir := filepath.Join(t.TempDir(), "logs")
	os.Mkdir(dir, 0o755)
	b := shell("echo one; read -r x; echo two")
	b.Stdin, b.LogPath = true, filepath.Join(dir, "0.log")
	id := p.run(b)
	eventually(t, "the first line is there", func() bool { data, _ := os.ReadFile(b.LogPath); return len(data) > 0 })
	if err := os.Rename(dir, dir+"-moved"); err != nil {
		t.Fatal(err)
	}
	if err := p.ReopenLog(t.Context(), id); !strings.Contains(fmt.Sprint(err), dir+" is missing") {
		t.Errorf("reopening in a missing directory: %v", err)
	}
	p.typeIn(id, "x\n")
	p.wait(id)
	data, err := os.ReadFile(filepath.Join(dir+"-moved", "0.log"))
	if err != nil || strings.Count(string(data), "stdout F ") != 2 {
		t.Errorf("the old log holds %q, %v", data, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("log directory was made: %v", err)
	}
}

// A full disk costs log, is told in the log, and does not stop the container.
func TestFullDisk(t *testing.T) {
	p := newPod(t)
	disk := filepath.Join(t.TempDir(), "disk")
	os.Mkdir(disk, 0o755)
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	ballast := filepath.Join(disk, "ballast")
	if out, err := exec.Command("dd", "if=/dev/zero", "of="+ballast, "bs=1000k", "count=1").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b := shell("seq 1 100000; echo > /tmp/one; read -r x; echo again; exit 6")
	b.Stdin, b.LogPath = true, filepath.Join(disk, "0.log")
	id := p.run(b)
	eventually(t, "the log is full", func() bool {
		var fs unix.Statfs_t
		unix.Statfs(disk, &fs)
		return fs.Bfree == 0
	})
	eventually(t, "seq is through, its end gone into nothing", func() bool {
		_, x, err := p.exec("cat /tmp/one", id)
		return err == nil && x.Code == 0
	})
	time.Sleep(200 * time.Millisecond) // what is left in the pipe
	os.Remove(ballast)
	p.typeIn(id, "x\n")
	if x := p.wait(id); x.Code != 6 {
		t.Errorf("exit is %+v", x)
	}
	data, err := os.ReadFile(b.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	last := lines[len(lines)-2:]
	if !strings.Contains(last[0], "stderr F [evenkeel: ") || !strings.HasSuffix(last[0], " bytes of log dropped: no space left on device]") {
		t.Errorf("the loss reads %q", last[0])
	}
	if !strings.HasSuffix(last[1], "stdout F again") {
		t.Errorf("the last line is %q", last[1])
	}
}
