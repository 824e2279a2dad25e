package shim

import (
	"errors"
	"testing"
)

// The time of a start is known before its outcome, and whoever asks meanwhile must not take it for one.
func TestStartUnderWay(t *testing.T) {
	c := &container{stdio: &stdio{}}
	for _, failure := range []error{errors.New("no"), nil} {
		a, first := c.beginStart()
		if s := c.state(); !first || !s.Starting || s.StartedAt.IsZero() {
			t.Errorf("while it is being started: first %v, %+v", first, s)
		}
		c.endStart(a, failure)
		if s := c.state(); s.Starting || s.StartedAt.IsZero() != (failure != nil) {
			t.Errorf("after the start (%v): %+v", failure, s)
		}
	}
}
