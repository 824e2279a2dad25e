package sandbox

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/shim"
)

// A question that fails is asked again: the exit would be lost with it.
func TestAnExitIsAwaitedUntilTheShimIsGone(t *testing.T) {
	p := emptyPods(t)
	pod, containers := enter(t, p, "web", 1)
	inTheWay := p.podState(pod.id) // a file where the directory with the socket belongs says nothing about the shim
	if err := os.WriteFile(inTheWay, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() {
		_, err := containers[0].awaitExit(t.Context())
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Fatalf("nobody waits for the exit any more: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; !errors.Is(err, shim.ErrGone) {
		t.Errorf("got %v, want that the shim is gone", err)
	}
}
