package main

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestSilentEngineIsNotAlive: a socket that accepts is not an engine that answers.
func TestSilentEngineIsNotAlive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, end := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer end()
	if err := alive(ctx, "unix://"+path); err == nil {
		t.Error("an engine that says nothing is taken to be alive")
	}
}
