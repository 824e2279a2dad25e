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
		ctx, kill, end := interrupts(context.WithoutCancel(t.Context()))
		send(t, self, first)
		within(t, first, ctx.Done())
		send(t, self, syscall.SIGPIPE)
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
