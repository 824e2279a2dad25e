package main

import (
	"bytes"
	"fmt"
	"time"
)

// logLine is one record of a CRI log: `2016-10-06T00:17:09.669794202Z stdout F content`
// (k8s.io/cri-client/pkg/logs/logs.go). A long line is written as several records, the last of which is not partial.
type logLine struct {
	Time    time.Time
	Stream  string // stdout or stderr
	Partial bool   // the line goes on in the next record of this stream
	Text    []byte // without the newline
}

func parseLogLine(raw []byte) (logLine, error) {
	fields := bytes.SplitN(bytes.TrimSuffix(raw, []byte("\n")), []byte(" "), 4)
	if len(fields) < 3 {
		return logLine{}, fmt.Errorf("log line %.80q has no time, stream and tag", raw)
	}
	at, err := time.Parse(time.RFC3339Nano, string(fields[0]))
	if err != nil {
		return logLine{}, fmt.Errorf("log line %.80q: %w", raw, err)
	}
	line := logLine{Time: at, Stream: string(fields[1])}
	if line.Stream != "stdout" && line.Stream != "stderr" {
		return logLine{}, fmt.Errorf("log line %.80q is of no known stream", raw)
	}
	// Tags after a colon are for the future and are skipped.
	tag, _, _ := bytes.Cut(fields[2], []byte(":"))
	line.Partial = string(tag) == "P"
	if len(fields) == 4 {
		line.Text = fields[3]
	}
	return line, nil
}
