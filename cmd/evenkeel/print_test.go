package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/cri/operator"
)

func TestPlain(t *testing.T) {
	refused := status.Error(codes.NotFound, "pod 12ab: not found")
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.New("plain"), "plain"},
		{fmt.Errorf("cannot stop pod: %w", refused), "cannot stop pod: pod 12ab: not found"},
		{errors.Join(refused, refused), "pod 12ab: not found\npod 12ab: not found"},
	} {
		if got := plain(c.err); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestUnlessSaid(t *testing.T) {
	for said, want := range map[string]string{
		"cannot pull a: 404": "cannot pull a: 404",
		"cannot pull: full":  "cannot pull a: full", // the engine does not know what a file is called, for one
		"connection lost":    "cannot pull a: connection lost",
	} {
		if got := plain(unlessSaid("cannot pull a", status.Error(codes.Unknown, said))); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestOnlyCancelled(t *testing.T) {
	cancelled := fmt.Errorf("cannot pull: %w", status.Error(codes.Canceled, "x"))
	for _, c := range []struct {
		err  error
		want bool
	}{
		{context.Canceled, true}, {cancelled, true}, {errors.Join(cancelled, context.Canceled), true},
		{errors.Join(cancelled, errors.New("disk full")), false}, {errors.New("x"), false},
	} {
		if got := onlyCancelled(c.err); got != c.want {
			t.Errorf("onlyCancelled(%v) = %v", c.err, got)
		}
	}
}

func TestByteCount(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1 kB", 4_260_000: "4.26 MB", 999_999: "1 MB", 12_345_678_901: "12.3 GB"} {
		if got := byteCount(n); got != want {
			t.Errorf("byteCount(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestTables(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	code, ended := int32(137), now.Add(-3*time.Minute)
	rows := []containerRow{
		{ID: strings.Repeat("a1", 32), Name: "web", Pod: "default/web", Image: "busybox", State: "running", CreatedAt: now.Add(-5 * time.Hour)},
		{ID: strings.Repeat("b2", 32), Name: "job", Pod: "default/job", Image: "sha256:" + strings.Repeat("c3", 32), State: "exited", Attempt: 2,
			CreatedAt: now.Add(-4 * time.Minute), FinishedAt: &ended, ExitCode: &code, Reason: "OOMKilled"},
	}
	var out bytes.Buffer
	if err := containerTable(rows, false, now).print(&out); err != nil {
		t.Fatal(err)
	}
	want := `CONTAINER      NAME   POD           IMAGE          STATE                             ATTEMPT   AGE
a1a1a1a1a1a1   web    default/web   busybox        running                           0         5h
b2b2b2b2b2b2   job    default/job   c3c3c3c3c3c3   exited (137, OOMKilled) 3m ago    2         4m
`
	if squeeze(out.String()) != squeeze(want) {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// squeeze leaves the widths of columns aside.
func squeeze(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n")
}

func TestSplitTag(t *testing.T) {
	for name, want := range map[string]string{
		"docker.io/library/busybox:1.36": "docker.io/library/busybox 1.36",
		"localhost:5000/web":             "localhost:5000/web ",
		"localhost:5000/web:v1":          "localhost:5000/web v1",
	} {
		repository, tag := splitTag(name)
		if got := repository + " " + tag; got != want {
			t.Errorf("splitTag(%q) = %q", name, got)
		}
	}
}

func TestProgress(t *testing.T) {
	layer := "sha256:0123456789abcdef"
	for _, width := range []int{0, 10, 40, 80, 200} {
		line := bar(operator.Progress{Layer: layer, Phase: "downloading", Done: 500, Total: 1000}, width)
		if len(line) >= width && width > 0 {
			t.Errorf("%d columns are too many for a terminal of %d: %q", len(line), width, line)
		}
	}
	got := bar(operator.Progress{Layer: layer, Phase: "downloading", Done: 500, Total: 1000}, 80)
	if want := "0123456789ab  downloading [=====================                     ]    500 B / 1 kB"; squeeze(got) != squeeze(want) && !strings.Contains(got, "==== ") {
		t.Errorf("got %q", got)
	}
	// Nothing moves where nobody watches: one line for each layer, when it is done.
	var out bytes.Buffer
	p := newProgress(&out)
	for done := int64(0); done <= 1000; done += 100 {
		p.update(operator.Progress{Layer: layer, Phase: "downloading", Done: done, Total: 1000})
	}
	p.update(operator.Progress{Layer: layer, Phase: "done", Done: 1000, Total: 1000})
	p.update(operator.Progress{Layer: layer, Phase: "done", Done: 1000, Total: 1000})
	p.finish()
	if want := "0123456789ab  done  1 kB\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

// TestProgressOfManyLayers: a terminal scrolls what does not fit, and no cursor goes back there.
func TestProgressOfManyLayers(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	p.width, p.height = 80, 4
	for i := range 6 {
		phase := "downloading"
		if i == 4 {
			phase = "done"
		}
		p.update(operator.Progress{Layer: fmt.Sprint("layer", i), Phase: phase, Total: 10})
	}
	out.Reset()
	p.draw()
	if text := out.String(); !strings.HasPrefix(text, "\x1b[3A") || strings.Count(text, "\n") != 3 || strings.Contains(text, "layer4") || !strings.Contains(text, "layer5") {
		t.Errorf("%q is not three lines of layers under way, drawn over three", text)
	}
}

func TestLogPrinter(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	line := func(stream, text string, partial bool) logLine { return logLine{at, stream, partial, []byte(text)} }
	print := func(p *logPrinter) (string, string) {
		var out, err bytes.Buffer
		p.stdout, p.stderr = &out, &err
		for _, l := range []logLine{line("stdout", "ha", true), line("stderr", "oops", false), line("stdout", "lf", false)} {
			if e := p.print("web", l); e != nil {
				t.Fatal(e)
			}
		}
		return out.String(), err.String()
	}
	for _, c := range []struct {
		p         *logPrinter
		out, errs string
	}{
		{&logPrinter{}, "half\n", "oops\n"},
		{&logPrinter{timestamps: true}, "2026-01-02T03:04:05.000000006Z half\n", "2026-01-02T03:04:05.000000006Z oops\n"},
		{&logPrinter{names: 5}, "web   | ha\nweb   | lf\n", "web   | oops\n"},
	} {
		if out, errs := print(c.p); out != c.out || errs != c.errs {
			t.Errorf("got %q and %q, want %q and %q", out, errs, c.out, c.errs)
		}
	}
}

func TestRestartPause(t *testing.T) {
	var p restartPause
	for _, want := range []int{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
		if got := p.next(time.Second); got != time.Duration(want)*time.Second {
			t.Errorf("%v, want %ds", got, want)
		}
	}
	if got := p.next(10 * time.Minute); got != time.Second {
		t.Errorf("after a long run: %v", got)
	}
}
