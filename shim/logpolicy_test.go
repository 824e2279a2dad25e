package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestBudget(t *testing.T) {
	b := budget{rate: 1000}
	at := time.Unix(100, 0)
	if d := b.pay(1000, at); d != 0 {
		t.Errorf("a second's worth waits %v", d)
	}
	if d := b.pay(500, at); d != 500*time.Millisecond {
		t.Errorf("half a second's worth of debt waits %v", d)
	}
	if d := b.pay(0, at.Add(500*time.Millisecond)); d != 0 {
		t.Errorf("a paid debt waits %v", d)
	}
	if d := b.pay(1000, at.Add(time.Hour)); d != 0 {
		t.Errorf("after an hour a second's worth waits %v", d)
	}
	if d := b.pay(1, at.Add(time.Hour)); d == 0 {
		t.Error("an hour of silence saved up more than a second's worth")
	}
}

func TestAfford(t *testing.T) {
	b := budget{rate: 10}
	at := time.Unix(100, 0)
	if n := b.afford([]byte("abc\nde\nfghi\n"), at); n != len("abc\nde\n") {
		t.Errorf("%d bytes", n)
	}
	if n := b.afford([]byte("x\n"), at.Add(100*time.Millisecond)); n != 0 {
		t.Errorf("%d bytes are let in right after a drop", n)
	}
	if n := b.afford([]byte("x\n"), at.Add(time.Second)); n != 2 {
		t.Errorf("%d bytes after a second", n)
	}
}

var dropNotice = regexp.MustCompile(`stderr F \[evenkeel: (\d+) bytes of log dropped: (.*)\]\n`)

// dropped sums what a log tells of drops.
func dropped(log string) (total int) {
	for _, m := range dropNotice.FindAllStringSubmatch(log, -1) {
		n, _ := strconv.Atoi(m[1])
		total += n
	}
	return total
}

// payload counts the lines that containers of these tests write.
func payload(log string) (lines int) { return strings.Count(log, " stdout F 0123456789\n") }

func TestRateThatBlocks(t *testing.T) {
	p := newPod(t)
	b := shell("i=0; while [ $i -lt 40000 ]; do echo 0123456789; i=$((i+1)); done")
	b.Log = &LogPolicy{Rate: 500_000}
	begin := time.Now()
	id := p.run(b)
	p.wait(id)
	log := p.log(id)
	if n := payload(log); n != 40000 {
		t.Errorf("log holds %d of 40000 lines", n)
	}
	if least := time.Duration(float64(len(log)-500_000-5*(readSize+defaultPipe)) / 500_000 * float64(time.Second)); time.Since(begin) < least {
		t.Errorf("%d bytes of log took only %v", len(log), time.Since(begin))
	}
}

func TestRateIsKept(t *testing.T) {
	p := newPod(t)
	b := shell("exec yes 0123456789")
	b.Log = &LogPolicy{Rate: 100_000}
	begin := time.Now()
	id := p.run(b)
	time.Sleep(2 * time.Second)
	p.Signal(t.Context(), id, unix.SIGKILL)
	p.wait(id)
	// One second's worth at once, one read on credit, and at the end what is in the pipe; records are 4.6 times the payload.
	most := 100_000*(time.Since(begin).Seconds()+1) + 5*(readSize+defaultPipe)
	if n := len(p.log(id)); float64(n) > most {
		t.Errorf("%d bytes in %v", n, time.Since(begin))
	}
}

func TestRateThatDrops(t *testing.T) {
	p := newPod(t)
	b := shell("yes 0123456789 | head -n 200000")
	b.Log = &LogPolicy{Drop: true, Rate: 100_000}
	begin := time.Now()
	id := p.run(b)
	p.wait(id)
	log := p.log(id)
	most := 100_000 * (time.Since(begin).Seconds() + 1.5)
	if float64(len(log)) > most {
		t.Errorf("%d bytes of log in %v", len(log), time.Since(begin))
	}
	s, err := p.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := dropped(log); got == 0 || uint64(got) != s.Containers[0].LogLost || s.Containers[0].LogBytes != uint64(len(log)) {
		t.Errorf("the log tells of %d dropped bytes, the shim of %d; %d bytes are written, the shim says %d", got, s.Containers[0].LogLost, len(log), s.Containers[0].LogBytes)
	}
	if !strings.Contains(log, "more than 100000 bytes per second") {
		t.Error("the log does not say why")
	}
}

func TestMaximum(t *testing.T) {
	for _, drop := range []bool{false, true} {
		t.Run(fmt.Sprint("drop ", drop), func(t *testing.T) {
			p := newPod(t)
			b := shell("yes 0123456789 | head -n 100000; echo > /tmp/one; read x; yes 0123456789 | head -n 10; read x")
			b.Stdin = true
			b.Log = &LogPolicy{Drop: drop, Max: 200_000}
			id := p.run(b)
			eventually(t, "the file is full", func() bool { return strings.Contains(p.log(id), "has reached its limit of 200000 bytes") })
			eventually(t, "the first part is written", func() bool {
				_, x, err := p.exec("cat /tmp/one", id)
				return err == nil && x.Code == 0
			})
			first := p.logPath(id) + ".1"
			if err := os.Rename(p.logPath(id), first); err != nil {
				t.Fatal(err)
			}
			eventually(t, "all is written", func() bool {
				s, err := p.State(t.Context())
				return err == nil && s.Containers[0].LogLost > 0 && settled(s.Containers[0].LogLost, p)
			})
			if err := p.ReopenLog(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			p.typeLine(id)
			eventually(t, "the new file has lines", func() bool { return payload(p.log(id)) == 10 })
			old, err := os.ReadFile(first)
			if err != nil || len(old) > 200_000 || len(old) < 199_000 {
				t.Errorf("the full file has %d bytes, %v", len(old), err)
			}
			record := len("2026-11-22T10:20:30.123456789Z stdout F 0123456789\n")
			rest := (100000 - payload(string(old))) * record
			if got := dropped(p.log(id)); got < rest*9/10 || got > rest {
				t.Errorf("%d bytes are told as dropped, not about %d", got, rest)
			}
		})
	}
}

// Records are not of one length, since a timestamp has no zeros at its end.
func TestFullFileStaysFull(t *testing.T) {
	l, err := openLog(filepath.Join(t.TempDir(), "log"), &LogPolicy{Max: noticeRoom + 100})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	long, short := strings.Repeat("x", 79)+"\n", strings.Repeat("y", 9)+"\n"
	l.write([]byte(long + long))
	l.write([]byte(short))
	data, err := os.ReadFile(l.path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(data), "\n")
	if len(lines) != 3 || lines[0] != long || !strings.Contains(lines[1], "has reached its limit") {
		t.Errorf("a full file holds %q", data)
	}
	if n, _ := l.gap.take(); n != len(long)+len(short) {
		t.Errorf("%d bytes are to be told as dropped", n)
	}
}

func settled(lost uint64, p *pod) bool {
	time.Sleep(50 * time.Millisecond)
	s, err := p.State(p.t.Context())
	return err == nil && s.Containers[0].LogLost == lost
}

func (p *pod) typeLine(id string) {
	r, w, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	w.WriteString("\n")
	w.Close()
	p.Attach(p.t.Context(), id, r, nil, nil)
	r.Close()
}

// A disk that hangs does not stop a container whose log may drop. The pipe nobody reads plays the disk.
func TestDropOnASlowDisk(t *testing.T) {
	p := newPod(t)
	b := shell("yes 0123456789 | head -n 500000; echo done > /tmp/done; sleep 1000")
	b.LogPath = p.logPath("fifo")
	if err := unix.Mkfifo(b.LogPath, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(b.LogPath, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	b.Log = &LogPolicy{Drop: true}
	id := p.run(b)
	eventually(t, "the container is done", func() bool {
		_, x, err := p.exec("cat /tmp/done", id)
		return err == nil && x.Code == 0
	})
	go func() {
		buffer := make([]byte, 1<<20)
		for {
			if _, err := reader.Read(buffer); err != nil {
				return
			}
		}
	}()
	p.Signal(t.Context(), id, unix.SIGKILL)
	p.wait(id)
}

func TestQueue(t *testing.T) {
	q := &logQueue{wake: make(chan struct{}, 1)}
	var got strings.Builder
	done := make(chan struct{})
	go q.run(func(b []byte) { got.Write(b) }, func() { close(done) })
	var want strings.Builder
	for i := range 10000 {
		line := fmt.Sprintln(i)
		for !q.push([]byte(line)) {
			t.Fatal("the queue is full of a few kilobytes")
		}
		want.WriteString(line)
	}
	<-q.written()
	if got.String() != want.String() {
		t.Errorf("%d bytes came out of %d", got.Len(), want.Len())
	}
	if q.push(make([]byte, queueLimit+1)) {
		t.Error("the queue has no limit")
	}
	q.end()
	<-done
	if q.push([]byte("late")) {
		t.Error("a queue that is over takes more")
	}
}
