package streaming

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// errGone is why a session's context ends when its client hangs up.
var errGone = errors.New("the client closed the connection")

// conns are the open connections, hijacked ones included, which net/http forgets. The zero value is ready.
type conns struct {
	mu     sync.Mutex // guards open and closed
	open   map[*conn]struct{}
	closed bool
}

func (c *conns) add(n *conn) (ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	if c.open == nil {
		c.open = map[*conn]struct{}{}
	}
	c.open[n] = struct{}{}
	return true
}

func (c *conns) remove(n *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, n)
}

// closeAll closes what is open and whatever is accepted afterwards.
func (c *conns) closeAll() {
	c.mu.Lock()
	c.closed = true
	open := c.open
	c.open = nil
	c.mu.Unlock()
	for n := range open {
		n.Close()
	}
}

// tracking is a listener whose connections are in conns.
type tracking struct {
	net.Listener
	conns *conns
}

func (t tracking) Accept() (net.Conn, error) {
	raw, err := t.Listener.Accept()
	if err != nil {
		return nil, err
	}
	n := &conn{Conn: raw, conns: t.conns}
	if !t.conns.add(n) {
		n.Close()
		return nil, net.ErrClosed
	}
	return n, nil
}

// conn is a connection that knows when its peer has hung up. Both wire protocols read all the time, so a failed read
// tells it at once; net/http tells it only until a connection is hijacked, which every one of ours is. While a process leaves
// its stdin unread, or reads slowly, and the client has sent more than the pipe holds, a client's end is behind all that it
// has sent. Then the client gets a heartbeat now and again: one that has gone answers any byte with a reset, and the next
// write fails.
type conn struct {
	net.Conn
	conns *conns

	mu      sync.Mutex // guards gone, end, reading, beat and wound
	gone    bool
	end     context.CancelCauseFunc // of the context of its requests; nil until there is one
	reading bool                    // now, so that the client's end would be noticed
	beat    *time.Timer             // nil until a request may upgrade
	wound   bool                    // beat runs

	writing sync.Mutex // guards frames, and keeps heartbeats out of the others' writes
	frames  *frames    // nil until a request may upgrade
}

func (n *conn) Read(p []byte) (int, error) {
	n.reads(true)
	count, err := n.Conn.Read(p)
	// A deadline is no hang-up: net/http sets one in the past to take the connection back from its own reader.
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		n.hangUp()
	}
	n.reads(false)
	return count, err
}

func (n *conn) reads(now bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reading = now
	if !now {
		n.wind()
	}
}

// wind has beat run, if it does not: a read puts no heartbeat off, since a slow reader reads again and again. n.mu is held.
func (n *conn) wind() {
	if n.beat != nil && !n.wound && !n.gone {
		n.wound = true
		n.beat.Reset(heartbeatAfter)
	}
}

func (n *conn) Write(p []byte) (int, error) {
	n.writing.Lock()
	defer n.writing.Unlock()
	count, err := n.Conn.Write(p)
	if n.frames != nil {
		n.frames.wrote(p[:count])
	}
	if err != nil {
		n.hangUp() // what was cut short cannot be gone on with, whatever the reason
	}
	return count, err
}

// upgrade prepares for heartbeats once the request has been agreed to.
func (n *conn) upgrade(f framing) {
	n.writing.Lock()
	n.frames = &frames{framing: f}
	n.writing.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.beat == nil {
		n.beat, n.wound = time.AfterFunc(heartbeatAfter, n.heartbeat), true
	}
}

// heartbeat ends the beats when somebody waits in a read, whose end begins them again. It leaves one out while a write is under
// way or a frame is half written: the end of that tells as much.
func (n *conn) heartbeat() {
	n.mu.Lock()
	n.wound = false
	reading := n.reading
	n.mu.Unlock()
	if reading {
		return
	}
	if n.writing.TryLock() {
		if f := n.frames; f.between() {
			if _, err := n.Conn.Write(f.heartbeat); err != nil {
				n.hangUp()
			}
		}
		n.writing.Unlock()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wind()
}

func (n *conn) Close() error {
	n.hangUp()
	n.conns.remove(n)
	return n.Conn.Close()
}

func (n *conn) hangUp() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gone = true
	if n.beat != nil {
		n.beat.Stop()
	}
	if n.end != nil {
		n.end(errGone)
	}
}

// connKey is where a request's context has its connection.
type connKey struct{}

// connContext makes the contexts of a connection's requests end with the connection.
func connContext(ctx context.Context, c net.Conn) context.Context {
	n := c.(*conn)
	ctx, end := context.WithCancelCause(context.WithValue(ctx, connKey{}, n))
	n.mu.Lock()
	defer n.mu.Unlock()
	n.end = end
	if n.gone { // Stop can come first
		end(errGone)
	}
	return ctx
}
