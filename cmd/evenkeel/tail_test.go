package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func logText(from, to int) string {
	var b strings.Builder
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, "2026-01-02T03:04:05.%09dZ stdout F line %d\n", i, i)
	}
	return b.String()
}

func TestParseLogLine(t *testing.T) {
	for raw, want := range map[string]string{
		"2016-10-06T00:17:09.669794202Z stdout F a b c\n":   "stdout false \"a b c\"",
		"2016-10-06T00:17:09.669794202Z stderr P half\n":    "stderr true \"half\"",
		"2016-10-06T00:17:09Z stdout P:extra:tags x\n":      "stdout true \"x\"",
		"2016-10-06T00:17:09+02:00 stdout F \n":             "stdout false \"\"",
		"2016-10-06T00:17:09Z stdout F\n":                   "stdout false \"\"",
		"2016-10-06T00:17:09Z stdin F x\n":                  "error",
		"yesterday stdout F x\n":                            "error",
		"{\"log\":\"x\"}\n":                                 "error",
		"2016-10-06T00:17:09Z stdout F  keeps  its spaces ": "stdout false \" keeps  its spaces \"",
	} {
		l, err := parseLogLine([]byte(raw))
		got := fmt.Sprintf("%s %v %q", l.Stream, l.Partial, l.Text)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", raw, got, want)
		}
	}
}

func TestSeekTail(t *testing.T) {
	long := logText(0, 2000) // several blocks
	for _, c := range []struct {
		text  string
		lines int
		want  string
	}{
		{"", 3, ""}, {"", -1, ""},
		{"a\nb\n", -1, "a\nb\n"}, {"a\nb\n", 0, ""}, {"a\nb\n", 1, "b\n"}, {"a\nb\n", 2, "a\nb\n"}, {"a\nb\n", 3, "a\nb\n"},
		{long, 1, logText(1999, 2000)}, {long, 1500, logText(500, 2000)}, {long, 5000, long},
	} {
		r := strings.NewReader(c.text)
		if err := seekTail(r, c.lines); err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		got.ReadFrom(r)
		if got.String() != c.want {
			t.Errorf("%.20q, %d lines: %d bytes, want %d", c.text, c.lines, got.Len(), len(c.want))
		}
	}
}

// TestFollow rotates a log under its reader, breaks a line in two, and ends it: no line is lost or doubled.
func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, logText(0, 3))
	ended := make(chan struct{})
	var got []string
	seen := make(chan string, 100)
	follower := &tail{Path: path, Lines: 2, Follow: true, Line: func(l logLine) error {
		got = append(got, string(l.Text))
		seen <- string(l.Text)
		return nil
	}}
	done := make(chan error, 1)
	go func() { done <- follower.run(t.Context(), ended) }()
	await(t, seen, "line 2")

	next := logText(3, 4)
	write(t, path, next[:20])
	write(t, path, next[20:])
	await(t, seen, "line 3")

	// The writer still has the old file when the name is gone, as between the kubelet's rename and its ReopenContainerLog.
	old, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := old.WriteString(logText(4, 5)); err != nil {
		t.Fatal(err)
	}
	await(t, seen, "line 4")
	write(t, path, logText(5, 6))
	await(t, seen, "line 5")

	write(t, path, logText(6, 7))
	close(ended)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if want := []string{"line 1", "line 2", "line 3", "line 4", "line 5", "line 6"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestLinesThatAreNone: they are passed over, and told of with their number.
func TestLinesThatAreNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, logText(0, 1)+"\x00\x00\x00\n{}\n"+logText(1, 2))
	var got []string
	reader := &tail{Path: path, Lines: -1}
	reader.Line = func(l logLine) error {
		got = append(got, string(l.Text))
		return nil
	}
	total := 0
	reader.Skipped = func(count int, first error) {
		got = append(got, fmt.Sprint(count, " ", first))
		total += count
	}
	if err := reader.run(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	want := []string{"line 0", "line 1", `2 ` + path + `: log line "\x00\x00\x00\n" has no time, stream and tag`}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}

	// Followed, it tells of what was there at once and of the rest at the end.
	got, total, reader = nil, 0, &tail{Path: path, Lines: -1, Follow: true, Skipped: reader.Skipped}
	seen, ended, done := make(chan string, 100), make(chan struct{}), make(chan error, 1)
	reader.Line = func(l logLine) error {
		seen <- string(l.Text)
		return nil
	}
	go func() { done <- reader.run(t.Context(), ended) }()
	await(t, seen, "line 1")
	for i := range 3 {
		write(t, path, "torn\n"+logText(2+i, 3+i))
		await(t, seen, fmt.Sprint("line ", 2+i))
	}
	close(ended)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if total != 5 || len(got) > 2 {
		t.Errorf("told of %d lines, so: %q", total, got)
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, "")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	follower := &tail{Path: path, Lines: -1, Follow: true, Line: func(logLine) error { return nil }}
	if err := follower.run(ctx, make(chan struct{})); err != context.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = f.WriteString(text)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func await(t *testing.T, seen <-chan string, want string) {
	t.Helper()
	for {
		select {
		case line := <-seen:
			if line == want {
				return
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%q did not come", want)
		}
	}
}

func TestSleepOnAProcess(t *testing.T) {
	child := exec.CommandContext(t.Context(), "cat")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(child.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := sleepOn(ctx, fd); err != context.DeadlineExceeded {
		t.Errorf("while it runs: %v", err)
	}
	in.Close()
	if err := sleepOn(t.Context(), fd); err != nil {
		t.Errorf("at its end: %v", err)
	}
	child.Wait()
}
