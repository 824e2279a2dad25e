package cri

import (
	"net"
	"sync"
	"time"
)

// A door is a listener that can be shut while the server behind it still serves. grpc's GracefulStop closes, without a word, a
// connection that was accepted and that it has not looked at yet: its client gets an error, though somebody else may hold the
// same socket and would have answered. So the door is shut first, then those inside are waited for, then the server stops.
type door struct {
	net.Listener

	shut   chan struct{} // closed: nobody is let in any more
	empty  chan struct{} // closed by Accept when it has seen that
	closed chan struct{}
	inside sync.WaitGroup // let in, not looked at yet
	once   sync.Once      // guards closed
}

func newDoor(l net.Listener) *door {
	return &door{Listener: l, shut: make(chan struct{}), empty: make(chan struct{}), closed: make(chan struct{})}
}

// Accept is called by one goroutine only, the server's.
func (d *door) Accept() (net.Conn, error) {
	for !d.isShut() {
		conn, err := d.Listener.Accept()
		if err == nil {
			d.inside.Add(1)
			return &arrival{Conn: conn, seen: sync.OnceFunc(d.inside.Done)}, nil
		}
		if !d.isShut() {
			return nil, err
		}
	}
	close(d.empty)
	<-d.closed
	return nil, net.ErrClosed
}

func (d *door) isShut() bool {
	select {
	case <-d.shut:
		return true
	default:
		return false
	}
}

func (d *door) Close() error {
	d.once.Do(func() { close(d.closed) })
	return d.Listener.Close()
}

// shutWithin lets nobody in any more and returns when the server has looked at everybody inside, or after the limit. Who
// connects from then on waits in the socket's backlog.
func (d *door) shutWithin(limit time.Duration) {
	l, ok := d.Listener.(interface{ SetDeadline(time.Time) error })
	if !ok {
		return
	}
	close(d.shut)
	l.SetDeadline(time.Unix(1, 0)) // Accept returns at once
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		select {
		case <-d.empty:
			d.inside.Wait()
		case <-d.closed:
		}
	}()
	select {
	case <-looked:
	case <-time.After(limit):
	}
}

// An arrival is a connection that tells when the server has taken it on: it sets a deadline for the handshake first of all.
type arrival struct {
	net.Conn
	seen func()
}

func (a *arrival) SetDeadline(t time.Time) error {
	a.seen()
	return a.Conn.SetDeadline(t)
}

func (a *arrival) Read(b []byte) (int, error) {
	a.seen()
	return a.Conn.Read(b)
}

func (a *arrival) Close() error {
	a.seen()
	return a.Conn.Close()
}
