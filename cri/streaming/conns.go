package streaming

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
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
// its stdin unread and the client has sent more than the pipe holds, nobody reads, and the session lasts as long as the process.
type conn struct {
	net.Conn
	conns *conns

	mu   sync.Mutex // guards gone and end
	gone bool
	end  context.CancelCauseFunc // of the context of its requests; nil until there is one
}

func (n *conn) Read(p []byte) (int, error) {
	count, err := n.Conn.Read(p)
	// A deadline is no hang-up: net/http sets one in the past to take the connection back from its own reader.
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		n.hangUp()
	}
	return count, err
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
	if n.end != nil {
		n.end(errGone)
	}
}

// connContext makes the contexts of a connection's requests end with the connection.
func connContext(ctx context.Context, c net.Conn) context.Context {
	n := c.(*conn)
	ctx, end := context.WithCancelCause(ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.end = end
	if n.gone { // Stop can come first
		end(errGone)
	}
	return ctx
}
