package main

import (
	"context"
	"os"
	"syscall"
	"testing"
	"time"
)

// TestInterrupts: losing the terminal or the reader of the output is as good as Ctrl-C, but it never kills, however often it comes.
func TestInterrupts(t *testing.T) {
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, first := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE} {
		ctx, lost, kill, end := interrupts(context.WithoutCancel(t.Context()))
		if first == syscall.SIGPIPE {
			send(t, self, first) // as the connection to a daemon that dies does
			time.Sleep(20 * time.Millisecond)
			if ctx.Err() != nil {
				t.Error("a signal of a connection ends the run")
			}
			writeToNobody(t, lost)
		} else {
			send(t, self, first)
		}
		within(t, first, ctx.Done())
		writeToNobody(t, lost)
		send(t, self, syscall.SIGHUP)
		time.Sleep(20 * time.Millisecond)
		if isClosed(kill) {
			t.Errorf("%v and a loss kill", first)
		}
		send(t, self, syscall.SIGINT)
		within(t, syscall.SIGINT, kill)
		end()
	}
}

func writeToNobody(t *testing.T, lost func()) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	if _, err := (&output{to: w, broken: lost}).Write([]byte("x")); err == nil {
		t.Error("a pipe without a reader takes a byte")
	}
}

func send(t *testing.T, p *os.Process, s os.Signal) {
	t.Helper()
	if err := p.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func within(t *testing.T, s os.Signal, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%v does nothing", s)
	}
}
