package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/evenkeel/evenkeel/integration/engine"
)

const blockLines = 100_000 // of 100 bytes each

// logScript makes a file of lines first and writes that again and again, so that the writer is never what is measured.
func logScript(blocks int) string {
	return fmt.Sprintf("yes %s | head -n %d >/tmp/block; echo prepared; sleep 0.5; echo begin; i=0; "+
		"while [ $i -lt %d ]; do cat /tmp/block; i=$((i+1)); done; echo end-of-log; sleep 100000",
		strings.Repeat("0123456789", 10)[:99], blockLines, blocks)
}

// logs lets a container write as fast as it can. The time runs from the record that says begin until the last record is
// seen in the file; the CPU time is that of the daemon and its helpers, not the container's.
func (s *session) logs(ctx context.Context) error {
	p, err := s.runPod(ctx, false)
	if err != nil {
		return err
	}
	blocks := max(1, s.LogMB/10)
	c := engine.Container("log", s.busybox, "sh", "-c", logScript(blocks))
	if _, err := s.start(ctx, p, c); err != nil {
		return err
	}
	path := filepath.Join(p.config.LogDirectory, c.LogPath)
	if err := awaitRecord(ctx, path, "prepared"); err != nil {
		return err
	}
	pids := append(s.Helpers(), s.PID())
	before := cpuOf(pids)
	if err := awaitRecord(ctx, path, "end-of-log"); err != nil {
		return err
	}
	end := time.Now()
	s.add(logCPURow, (cpuOf(pids) - before).Seconds())
	begin, partial, err := readLog(path)
	if err != nil {
		return err
	}
	s.add(logRow, float64(blocks*blockLines*100)/1e6/end.Sub(begin).Seconds())
	s.add(logPartialRow, float64(partial))
	return s.down(ctx, p.id)
}

// awaitRecord returns when the log's last record is this one.
func awaitRecord(ctx context.Context, path, record string) error {
	for begin := time.Now(); time.Since(begin) < 2*time.Minute && ctx.Err() == nil; time.Sleep(2 * time.Millisecond) {
		if strings.HasSuffix(tail(path), " "+record+"\n") {
			return nil
		}
	}
	return fmt.Errorf("the record %q did not come", record)
}

// tail is the end of a file.
func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	f.Seek(-64, io.SeekEnd) // fails on a shorter file, which is then read from its start
	data, _ := io.ReadAll(f)
	return string(data)
}

// readLog finds the time of the record that says begin, and counts records with the tag P, for partial.
func readLog(path string) (begin time.Time, partial int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return begin, 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		at, rest, _ := bytes.Cut(lines.Bytes(), []byte(" stdout "))
		if bytes.HasPrefix(rest, []byte("P ")) {
			partial++
		}
		if bytes.Equal(rest, []byte("F begin")) {
			if begin, err = time.Parse(time.RFC3339Nano, string(at)); err != nil {
				return begin, partial, err
			}
		}
	}
	if begin.IsZero() && lines.Err() == nil {
		return begin, partial, fmt.Errorf("%s has no record that says begin", path)
	}
	return begin, partial, lines.Err()
}
