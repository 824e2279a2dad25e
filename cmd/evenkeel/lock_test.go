package main

import (
	"strings"
	"testing"
	"time"
)

// A daemon that was killed leaves its lock, for a moment, with a child that it was about to turn into a program.
func TestLockIsWaitedForAMoment(t *testing.T) {
	dir := t.TempDir()
	dying, err := takeState(dir)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(lockPatience/4, func() { dying.Close() })
	next, err := takeState(dir)
	if err != nil {
		t.Fatalf("the lock of a daemon that has gone: %v", err)
	}
	defer next.Close()
	if _, err := takeState(dir); err == nil || !strings.Contains(err.Error(), "another engine works on "+dir) {
		t.Errorf("beside a living one: %v", err)
	}
}
