package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	resumeTries = 5 // in a row without one byte of progress
	stallTries  = 3 // in a row below the floor
)

// A connection that brings less than stallFloor bytes while somebody has waited for stallLimit is given up: two KiB a
// second, so that no line on which an image ever arrives is taken for a dead one.
const (
	stallLimit = 30 * time.Second
	stallFloor = 64 << 10
)

// errOutOfHosts says that no host is left from which a blob could be fetched once more.
var errOutOfHosts = errors.New("no further host")

// blob opens a blob for reading from its start, passing over the first skip hosts that hand out content. What is
// read is not verified here. Reading goes on, from the byte reached, after the connection broke.
func (r *remote) blob(ctx context.Context, d ocispec.Descriptor, skip int) (io.ReadCloser, error) {
	b := &blobReader{ctx: ctx, remote: r, desc: d, first: skip, skip: skip}
	if skip > 0 && skip >= b.able() {
		return nil, errOutOfHosts
	}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

// blobReader is a blob's body that survives broken connections by asking for the rest (RFC 9110, section 14.2).
type blobReader struct {
	ctx    context.Context // of the fetch: a reader lives no longer than the call that made it
	remote *remote
	desc   ocispec.Descriptor
	first  int // hosts whose content is not wanted
	skip   int // hosts not to ask now
	at     int64
	tries  int // since the last byte
	stalls int // since the floor was last reached
	body   io.ReadCloser
	cancel context.CancelCauseFunc
	stall  *time.Timer
	refuse error // why no host went on, when there is no body

	waited time.Duration // for the bytes of this window
	came   int64
}

var errStalled = fmt.Errorf("less than %d KiB came in %v", stallFloor>>10, stallLimit)

func (b *blobReader) able() int {
	n := 0
	for _, h := range b.remote.hosts {
		if h.pull {
			n++
		}
	}
	return n
}

// open asks the hosts in turn for the blob from b.at on.
func (b *blobReader) open() error {
	ctx, cancel := context.WithCancelCause(b.ctx)
	left := b.skip
	able := func(h *host) bool {
		if !h.pull {
			return false
		}
		left--
		return left < 0
	}
	err := b.remote.each(ctx, "blob "+b.desc.Digest.String(), able, func(h *host) error {
		resp, err := h.blob(ctx, b.desc, b.at)
		if err != nil {
			return err
		}
		b.body, err = b.rest(resp)
		return err
	})
	if err != nil {
		cancel(nil)
		return err
	}
	b.cancel, b.waited, b.came = cancel, 0, 0
	b.stall = time.AfterFunc(b.remote.patience, func() { cancel(errStalled) })
	b.stall.Stop()
	return nil
}

// rest makes a response's body start at b.at. A server that does not know ranges sends everything again.
func (b *blobReader) rest(resp *http.Response) (io.ReadCloser, error) {
	pass := b.at
	if resp.StatusCode == http.StatusPartialContent {
		pass = 0
		if !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", b.at)) {
			resp.Body.Close()
			return nil, fmt.Errorf("asked for the bytes from %d on, got %q", b.at, resp.Header.Get("Content-Range"))
		}
	}
	if _, err := io.CopyN(io.Discard, resp.Body, pass); err != nil {
		resp.Body.Close()
		return nil, broken(err)
	}
	return resp.Body, nil
}

// Read returns io.EOF after as many bytes as the descriptor announces, and an error if there are more.
func (b *blobReader) Read(p []byte) (int, error) {
	for {
		n, err := b.read(p)
		b.at += int64(n)
		if n > 0 {
			b.tries = 0
		}
		switch {
		case b.at > b.desc.Size:
			return 0, fmt.Errorf("%w: blob %s is longer than the %d bytes of its manifest", ErrCorrupt, b.desc.Digest, b.desc.Size)
		case n > 0:
			return n, nil // an error, if it lasts, comes again
		case err == nil:
			continue
		case b.at == b.desc.Size: // how the connection ends is nothing to a reader who has it all
			return 0, io.EOF
		}
		if err := b.resume(err); err != nil {
			return 0, err
		}
	}
}

// read counts the time in which we wait for the registry, not that in which the registry waits for the unpacking.
func (b *blobReader) read(p []byte) (int, error) {
	if b.body == nil {
		return 0, b.refuse
	}
	start := time.Now()
	b.stall.Reset(b.remote.patience - b.waited)
	n, err := b.body.Read(p)
	b.stall.Stop()
	b.waited += time.Since(start)
	b.came += int64(n)
	b.remote.count.downloaded.Add(int64(n))
	if b.came >= stallFloor {
		b.waited, b.came, b.stalls = 0, 0, 0
	} else if err == nil && b.waited >= b.remote.patience {
		err = errStalled
	}
	return n, err
}

// resume opens the rest of the blob after cause ended the connection. A host that breaks off again and again without
// a byte in between, or that only trickles, is passed over.
func (b *blobReader) resume(cause error) error {
	stalled := errors.Is(cause, errStalled) || b.waited >= b.remote.patience
	b.hangUp()
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	b.tries++
	b.remote.count.resumed.Add(1)
	if stalled {
		b.stalls++
		b.remote.count.stalled.Add(1)
		cause = errStalled
	}
	if b.tries > resumeTries || b.stalls >= stallTries {
		return classed{fmt.Errorf("cannot read on in blob %s at byte %d of %d: %v", b.desc.Digest, b.at, b.desc.Size, cause), ErrUnavailable}
	}
	if (b.tries > 2 || stalled) && b.refuse == nil && b.skip+1 < b.able() {
		b.skip++
	}
	b.refuse = nil
	b.remote.log.Info("connection broke inside a blob; reading on", "blob", b.desc.Digest, "byte", b.at, "of", b.desc.Size, "try", b.tries, "error", cause)
	if b.tries > 1 || stalled { // a connection that brought something before it broke is taken up again at once
		if err := pause(b.ctx, b.tries, nil); err != nil {
			return err
		}
	}
	err := b.open()
	if err == nil || b.ctx.Err() != nil || b.everyHostAnswered(err) {
		return err
	}
	// The next read finds no body and comes back here, until the tries are used up.
	b.refuse, b.skip = err, b.first
	b.waited = 0 // or the stall would count once more
	return nil
}

// everyHostAnswered tells a blob that is gone from one that the only host to have it does not give just now: a host that was passed
// over has handed out a part of it, and one that is down may be the next to.
func (b *blobReader) everyHostAnswered(err error) bool {
	var failed *hostsError
	return b.skip == b.first && errors.As(err, &failed) && !slices.ContainsFunc(failed.causes, func(cause error) bool { return errors.Is(cause, ErrUnavailable) })
}

func (b *blobReader) hangUp() {
	if b.body != nil {
		b.stall.Stop()
		b.cancel(nil)
		b.body.Close()
		b.body = nil
	}
}

func (b *blobReader) Close() error {
	b.hangUp()
	return nil
}
