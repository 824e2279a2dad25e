package image

import (
	"errors"
	"io"
	"sync"
)

const (
	aheadSize  = 128 << 10 // bytes of a buffer
	aheadDepth = 3         // buffers under way between the two sides
)

// aheadReader reads from its source in a goroutine of its own, so that fetching, inflating and writing overlap.
type aheadReader struct {
	full, free chan *chunk
	quit       chan struct{}
	stop       sync.Once
	done       chan struct{} // the goroutine has ended and touches the source no more
	now        *chunk
	at         int
}

// chunk is a filled part of a buffer; err comes after its bytes.
type chunk struct {
	data []byte
	n    int
	err  error
}

var errAheadClosed = errors.New("read after close")

// readAhead starts reading. Close it: it ends when its current read of the source does.
func readAhead(r io.Reader) *aheadReader {
	a := &aheadReader{
		full: make(chan *chunk, aheadDepth), free: make(chan *chunk, aheadDepth),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	for range aheadDepth {
		a.free <- &chunk{}
	}
	go a.fill(r)
	return a
}

func (a *aheadReader) fill(r io.Reader) {
	defer close(a.done)
	lowerForGood()
	for {
		var c *chunk
		select {
		case c = <-a.free:
		case <-a.quit:
			return
		}
		if c.data == nil {
			c.data = make([]byte, aheadSize)
		}
		c.n, c.err = fillBuffer(r, c.data)
		failed := c.err != nil
		a.full <- c // never blocks: there are as many places as chunks
		if failed {
			return
		}
	}
}

// fillBuffer reads until the buffer is full or an error comes. Small reads would cost a switch of goroutines each.
func fillBuffer(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

func (a *aheadReader) Read(p []byte) (int, error) {
	for a.now == nil || a.at == a.now.n {
		if a.now != nil {
			if a.now.err != nil {
				return 0, a.now.err
			}
			a.free <- a.now
			a.now = nil
		}
		select {
		case a.now = <-a.full:
			a.at = 0
		case <-a.quit:
			return 0, errAheadClosed
		}
	}
	n := copy(p, a.now.data[a.at:a.now.n])
	a.at += n
	return n, nil
}

// Close waits until the source is no longer read.
func (a *aheadReader) Close() error {
	a.stop.Do(func() { close(a.quit) })
	<-a.done
	return nil
}
