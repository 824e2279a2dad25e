package sandbox

import (
	"bytes"
	"os"
	"testing"
	"time"
)

// A reader that gets no processor until its time is over must not lose what a process wrote before it ended.
func TestOutputIsReadPastTheDeadline(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close() // a descendant keeps it open
	w.Write(bytes.Repeat([]byte("x"), 60_000))
	r.SetReadDeadline(time.Now().Add(-time.Hour))
	var got bytes.Buffer
	copyOutput(&got, r)
	if got.Len() != 60_000 {
		t.Errorf("%d bytes of 60000", got.Len())
	}
}
