package shim

import (
	"bytes"
	"time"
)

// The format of container logs (CRI, k8s.io/cri-client/pkg/logs): time, stream, tag, content, each line ended by "\n".
// The tag is F for a full line or the last part of one, P for a part that the next record continues.

// lineLimit is the content of one record; longer lines are split. It is what the other runtimes take, and what the
// kubelet's reader is tried with.
const lineLimit = 16 << 10

// appendHead appends "2026-11-22T10:20:30.123456789Z stdout F ".
func appendHead(b []byte, now time.Time, stream string, tag byte) []byte {
	b = now.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, ' ')
	b = append(b, stream...)
	return append(b, ' ', tag, ' ')
}

// lineFormatter turns output into records. All records of one read carry one time, formatted once.
type lineFormatter struct {
	stream string
	out    []byte // records not yet written; its capacity bounds a batch
	full   []byte // head of an F record
	part   []byte
	flush  func(records []byte)
}

// stamp sets the time of the records to come.
func (l *lineFormatter) stamp(now time.Time) {
	l.full = appendHead(l.full[:0], now, l.stream, 'F')
	l.part = appendHead(l.part[:0], now, l.stream, 'P')
}

// lines formats the whole lines in data and the parts of a line too long for one record. It returns what is left: the
// beginning of a line, of at most lineLimit bytes.
func (l *lineFormatter) lines(data []byte) (rest []byte) {
	for {
		end := bytes.IndexByte(data, '\n')
		line := data
		if end >= 0 {
			line = data[:end]
		}
		for len(line) > lineLimit {
			l.record(l.part, line[:lineLimit])
			line = line[lineLimit:]
		}
		if end < 0 {
			return line
		}
		l.record(l.full, line)
		data = data[end+1:]
	}
}

// last formats a line that will never be ended.
func (l *lineFormatter) last(rest []byte) {
	if len(rest) > 0 {
		l.record(l.full, rest)
	}
}

func (l *lineFormatter) record(head, content []byte) {
	if len(l.out)+len(head)+len(content)+1 > cap(l.out) {
		l.write()
	}
	l.out = append(l.out, head...)
	l.out = append(l.out, content...)
	l.out = append(l.out, '\n')
}

func (l *lineFormatter) write() {
	if len(l.out) > 0 {
		l.flush(l.out)
		l.out = l.out[:0]
	}
}
