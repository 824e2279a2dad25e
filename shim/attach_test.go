package shim

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// attached is the daemon's side of an Attach.
type attached struct {
	stdin          *os.File
	stdout, stderr *bufio.Reader
	out, err       *os.File
	done           chan error
	cancel         context.CancelFunc
}

func (p *pod) attach(id string, stdin, stdout, stderr bool) *attached {
	p.t.Helper()
	a := &attached{done: make(chan error, 1)}
	var theirs [3]*os.File
	for i, want := range []bool{stdin, stdout, stderr} {
		if !want {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			p.t.Fatal(err)
		}
		p.t.Cleanup(func() { r.Close(); w.Close() })
		switch i {
		case 0:
			theirs[i], a.stdin = r, w
		case 1:
			theirs[i], a.out, a.stdout = w, r, bufio.NewReader(r)
		case 2:
			theirs[i], a.err, a.stderr = w, r, bufio.NewReader(r)
		}
	}
	var pipes []string
	for _, f := range theirs {
		if f != nil {
			name, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
			pipes = append(pipes, name)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	p.t.Cleanup(cancel)
	go func() {
		err := p.Attach(ctx, id, theirs[0], theirs[1], theirs[2])
		closeAll(theirs[:])
		a.done <- err
	}()
	eventually(p.t, "it is attached", func() bool {
		has := map[string]int{}
		for _, name := range descriptors(p.t, p.self.PID) {
			has[name]++
		}
		for _, name := range pipes {
			if has[name] < 2 { // as received, and in its polled form
				return len(a.done) > 0
			}
		}
		return true
	})
	return a
}

func (p *pod) typeIn(id, text string) {
	p.t.Helper()
	a := p.attach(id, true, false, false)
	if _, err := a.stdin.WriteString(text); err != nil {
		p.t.Fatal(err)
	}
	a.stdin.Close()
	a.wait(p.t)
}

func (a *attached) wait(t testing.TB) {
	t.Helper()
	select {
	case err := <-a.done:
		if err != nil {
			t.Errorf("attach ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("attach does not end")
	}
}

func (a *attached) line(t testing.TB) string {
	t.Helper()
	a.out.SetReadDeadline(time.Now().Add(time.Minute))
	line, err := a.stdout.ReadString('\n')
	if err != nil {
		t.Fatalf("got %q, %v", line, err)
	}
	return line
}

func TestAttach(t *testing.T) {
	p := newPod(t)
	b := shell("while read -r x; do echo got $x; echo bad $x >&2; done; echo bye")
	b.Stdin = true
	id := p.run(b)
	one, two := p.attach(id, true, true, true), p.attach(id, false, true, false)
	one.stdin.WriteString("ping\n")
	if got := one.line(t) + two.line(t); got != "got ping\ngot ping\n" {
		t.Errorf("attached see %q", got)
	}
	if line, err := one.stderr.ReadString('\n'); line != "bad ping\n" {
		t.Errorf("stderr is %q, %v", line, err)
	}
	// Without StdinOnce the end of an attachment's stdin is not the container's.
	one.stdin.Close()
	three := p.attach(id, true, true, false)
	three.stdin.WriteString("pong\n")
	if got := three.line(t); got != "got pong\n" {
		t.Errorf("after the first stdin ended: %q", got)
	}
	two.cancel()
	if err := <-two.done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled attach gave %v", err)
	}
	p.Signal(t.Context(), id, 9)
	p.wait(id)
	one.wait(t)
	three.wait(t)
	if got := p.content(id); !strings.Contains(got, "stdout F got ping\n") || !strings.Contains(got, "stderr F bad pong\n") {
		t.Errorf("log is %q", got)
	}
}

func TestStdinOnce(t *testing.T) {
	p := newPod(t)
	b := shell("cat; echo end")
	b.Stdin, b.StdinOnce = true, true
	id := p.run(b)
	a := p.attach(id, true, true, false)
	a.stdin.WriteString("text\n")
	a.stdin.Close()
	data, err := io.ReadAll(a.stdout)
	if string(data) != "text\nend\n" || err != nil {
		t.Errorf("output is %q, %v", data, err)
	}
	if x := p.wait(id); x.Code != 0 {
		t.Errorf("exit is %+v", x)
	}
}

// Who could not be attached leaves nothing behind, and was not the one attachment that StdinOnce speaks of.
func TestFailedAttach(t *testing.T) {
	p := newPod(t)
	id := p.run(shell("true"))
	p.wait(id)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	pipe, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(w.Fd())))
	if err := p.Attach(t.Context(), id, nil, w, nil); err == nil || !strings.Contains(err.Error(), "it has ended") {
		t.Errorf("attaching to an ended container gives %v", err)
	}
	eventually(t, "the shim keeps no descriptor of it", func() bool { return !slices.Contains(descriptors(t, p.self.PID), pipe) })

	s := &server{containers: map[string]*container{}}
	o, err := s.openStdio(CreateRequest{Stdin: true, StdinOnce: true})
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	s.containers["c"] = &container{stdio: o, ended: make(chan struct{})}
	closed, _ := os.Open(os.DevNull)
	closed.Close()
	if err := s.attach(t.Context(), "c", [3]*os.File{r, closed, nil}); err == nil {
		t.Error("a closed descriptor is attached")
	}
	if o.stdinOver.Err() != nil {
		t.Error("an attach that failed has ended the container's stdin")
	}
}

func TestStdinWithoutAReaderDoesNotHoldAnAttach(t *testing.T) {
	p := newPod(t)
	b := shell("exec sleep 1000")
	b.Stdin = true
	id := p.run(b)
	a := p.attach(id, true, false, false)
	a.stdin.SetWriteDeadline(time.Now().Add(time.Second))
	a.stdin.WriteString(strings.Repeat("x", 1<<20)) // more than all pipes on the way hold
	before := len(descriptors(t, p.self.PID))
	a.cancel()
	<-a.done
	eventually(t, "its descriptors are closed", func() bool { return len(descriptors(t, p.self.PID)) < before })
}

// Who does not read loses output alone: the container and its log go on.
func TestSlowReader(t *testing.T) {
	p := newPod(t)
	const lines = 500000
	b := shell("read -r x; seq 1 500000")
	b.Stdin = true
	id := p.run(b)
	slow, fast := p.attach(id, false, true, false), p.attach(id, false, true, false)
	total := make(chan int, 1)
	go func() {
		n := 0
		for {
			if _, err := fast.stdout.ReadString('\n'); err != nil {
				break
			}
			n++
		}
		total <- n
	}()
	p.typeIn(id, "go\n")
	if x := p.wait(id); x.Code != 0 {
		t.Errorf("exit is %+v", x)
	}
	if n := strings.Count(p.log(id), "\n"); n != lines {
		t.Errorf("log holds %d of %d lines", n, lines)
	}
	fast.wait(t)
	if n := <-total; n < lines/2 {
		t.Errorf("the fast reader saw %d of %d lines", n, lines)
	}
	select {
	case <-slow.done:
		t.Error("the slow reader's attach ended before it had read what was kept for it")
	case <-time.After(100 * time.Millisecond):
	}
	data, _ := io.ReadAll(slow.stdout)
	if len(data) < attachLimit || len(data) > 2*attachLimit {
		t.Errorf("the slow reader was kept %d bytes", len(data))
	}
	slow.wait(t)
}

func TestAttachEndsWhenItsPeersGo(t *testing.T) {
	p := newPod(t)
	id := p.run(shell("exec sleep 1000"))
	a := p.attach(id, false, true, true)
	a.out.Close()
	select {
	case err := <-a.done:
		t.Errorf("attach ended with one of its two peers: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	a.err.Close()
	a.wait(t)
}

func TestTerminal(t *testing.T) {
	p := newPod(t)
	b := shell("read -r x; echo got $x; stty size; read -r x; stty size; echo err >&2")
	b.TTY, b.Stdin = true, true
	id := p.create(b)
	if err := p.Resize(t.Context(), id, 80, 24); err != nil {
		t.Error(err)
	}
	p.start(id)
	a := p.attach(id, true, true, false)
	a.stdin.WriteString("hello\n")
	if got := a.line(t) + a.line(t) + a.line(t); got != "hello\r\ngot hello\r\n24 80\r\n" {
		t.Errorf("terminal shows %q", got)
	}
	if err := p.Resize(t.Context(), id, 132, 50); err != nil {
		t.Error(err)
	}
	a.stdin.WriteString("\n")
	if got := a.line(t) + a.line(t) + a.line(t); got != "\r\n50 132\r\nerr\r\n" {
		t.Errorf("terminal shows %q", got)
	}
	p.wait(id)
	a.wait(t)
	if got := p.content(id); !strings.HasSuffix(got, "stdout F 50 132\r\nstdout F err\r\n") {
		t.Errorf("log is %q", got)
	}
	if err := p.Resize(t.Context(), p.create(shell("true")), 1, 1); err == nil {
		t.Error("a container without a terminal can be resized")
	}
}
