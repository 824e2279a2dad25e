package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/evenkeel/evenkeel/cri/operator"
)

// progress shows the layers of a pull or import: one bar each on a terminal, else one line when a layer is done.
type progress struct {
	w      io.Writer
	width  int // of the terminal; 0: not one
	height int // of the terminal
	order  []string
	layers map[string]operator.Progress
	drawn  int // lines on the screen that are ours
	at     time.Time
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, layers: map[string]operator.Progress{}}
	if f := terminalOf(w); f != nil {
		p.width, p.height, _ = term.GetSize(int(f.Fd()))
	}
	return p
}

// update takes a report. Reports come one after the other.
func (p *progress) update(r operator.Progress) {
	before, known := p.layers[r.Layer]
	if !known {
		p.order = append(p.order, r.Layer)
	}
	p.layers[r.Layer] = r
	ended := isFinal(r.Phase) && !isFinal(before.Phase)
	switch {
	case p.width == 0 && ended:
		fmt.Fprintln(p.w, plainProgress(r))
	case p.width > 0 && (ended || !known || time.Since(p.at) > 50*time.Millisecond):
		p.draw()
	}
}

func isFinal(phase string) bool { return phase == "done" || phase == "exists" }

func plainProgress(r operator.Progress) string {
	return fmt.Sprintf("%s  %s  %s", shortID(r.Layer), r.Phase, byteCount(uint64(max(r.Total, r.Done))))
}

// finish leaves the last state on the screen.
func (p *progress) finish() {
	if p.width > 0 && len(p.order) > 0 {
		p.draw()
	}
}

// draw goes back to the first of our lines and writes all of them anew.
func (p *progress) draw() {
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.drawn)
	}
	shown := p.shown()
	for _, layer := range shown {
		b.WriteString("\r\x1b[2K" + bar(p.layers[layer], p.width) + "\n")
	}
	p.drawn, p.at = len(shown), time.Now()
	io.WriteString(p.w, b.String())
}

// shown are as many layers as the terminal has room for, since no cursor goes back to a line that has left it: the last ones
// that are not done, after those that are.
func (p *progress) shown() []string {
	room := max(p.height-1, 1)
	if len(p.order) <= room {
		return p.order
	}
	list := slices.Clone(p.order)
	slices.SortStableFunc(list, func(a, b string) int { return rank(p.layers[b].Phase) - rank(p.layers[a].Phase) })
	return list[len(list)-room:]
}

func rank(phase string) int {
	if isFinal(phase) {
		return 1
	}
	return 0
}

// bar is one layer in at most width columns: id, phase, bar, bytes.
func bar(r operator.Progress, width int) string {
	left := fmt.Sprintf("%s  %-11s ", shortID(r.Layer), r.Phase)
	right := fmt.Sprintf(" %8s / %s", byteCount(uint64(max(r.Done, 0))), byteCount(uint64(max(r.Total, 0))))
	if isFinal(r.Phase) {
		right = " " + byteCount(uint64(max(r.Total, r.Done)))
	}
	line := left + right
	if room := min(40, width-len(line)-3); room >= 5 {
		line = left + "[" + fill(r, room) + "]" + right
	}
	return line[:min(len(line), max(width-1, 0))]
}

func fill(r operator.Progress, room int) string {
	full := 0
	switch {
	case isFinal(r.Phase):
		full = room
	case r.Total > 0:
		full = int(min(r.Done, r.Total) * int64(room) / r.Total)
	}
	return strings.Repeat("=", full) + strings.Repeat(" ", room-full)
}
