package streaming

import (
	"bytes"
	"encoding/binary"
	"net/http"
	"strings"
	"time"
)

// heartbeatAfter is how often a client is told that we live, while nobody is found waiting for what it sends.
const heartbeatAfter = 2 * time.Second

// A framing is a wire protocol as far as something can be put between two of its frames.
type framing struct {
	// size of a frame in bytes, header included; where header is too short to tell, known is false and it is how long header must be.
	size func(header []byte) (size uint64, known bool)
	// heartbeat is a frame that wants no answer. An answer would wait behind whatever the client cannot get rid of.
	heartbeat []byte
}

// webSocket is RFC 6455; its heartbeat is an unsolicited pong (section 5.5.3).
var webSocket = framing{webSocketSize, []byte{0x8a, 0}}

// spdy31 is SPDY/3.1; its heartbeat is a PING with a client's id, which a client that has not sent it must ignore (section 2.6.5).
var spdy31 = framing{spdySize, []byte{0x80, 3, 0, 6, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff}}

// framingOf is what the answer to a request that asks for an upgrade is followed by.
func framingOf(r *http.Request) framing {
	if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return webSocket
	}
	return spdy31
}

func webSocketSize(header []byte) (size uint64, known bool) {
	if len(header) < 2 {
		return 2, false
	}
	switch length := header[1] & 0x7f; {
	case length < 126:
		return 2 + uint64(length), true
	case length == 126 && len(header) < 4:
		return 4, false
	case length == 126:
		return 4 + uint64(binary.BigEndian.Uint16(header[2:])), true
	case len(header) < 10:
		return 10, false
	}
	return 10 + binary.BigEndian.Uint64(header[2:]), true
}

func spdySize(header []byte) (size uint64, known bool) {
	if len(header) < 8 {
		return 8, false
	}
	return 8 + uint64(binary.BigEndian.Uint32(header[4:])&0xffffff), true
}

// headLimit is more than the libraries' answers to an upgrade have, in bytes.
const headLimit = 4 << 10

// frames follows what is written after a request to upgrade: the head of the answer, and then frames.
type frames struct {
	framing
	upgraded bool   // the head is over
	failed   bool   // it is no upgrade
	head     []byte // of the answer, or of the frame whose size is not known yet
	left     uint64 // bytes to come of the frame whose size is known
}

// between reports whether what was written last was the end of a frame.
func (f *frames) between() bool { return f.upgraded && len(f.head) == 0 && f.left == 0 }

func (f *frames) wrote(p []byte) {
	for len(p) > 0 && !f.failed {
		if f.upgraded {
			p = f.frame(p)
		} else {
			p = f.answer(p)
		}
	}
}

func (f *frames) answer(p []byte) (rest []byte) {
	before := len(f.head)
	f.head = append(f.head, p[:min(len(p), headLimit)]...)
	end := bytes.Index(f.head, []byte("\r\n\r\n"))
	if end < 0 {
		f.failed = len(f.head) >= headLimit
		return nil
	}
	f.upgraded = bytes.HasPrefix(f.head, []byte("HTTP/1.1 101 "))
	f.failed = !f.upgraded
	f.head = nil
	return p[end+4-before:]
}

func (f *frames) frame(p []byte) (rest []byte) {
	for f.left == 0 {
		size, known := f.size(f.head)
		if have := uint64(len(f.head)); known {
			f.left, f.head = size-have, f.head[:0]
			break
		} else if len(p) > 0 {
			taken := min(size-have, uint64(len(p)))
			f.head, p = append(f.head, p[:taken]...), p[taken:]
			continue
		}
		return nil
	}
	taken := min(f.left, uint64(len(p)))
	f.left -= taken
	return p[taken:]
}
