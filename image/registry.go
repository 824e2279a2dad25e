package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// oras-go's registry/remote has no notion of a path prefix, of ns= or of a Range that starts where another host
// stopped, so the three requests that a pull needs are made here; oras-go's auth client does the authentication.

const (
	manifestLimit = 4 << 20 // bytes; the distribution spec asks registries to accept at least as much, few take more
	configLimit   = 8 << 20 // bytes of an image's config document
)

// documentLimit is for all tries at one host to get a document, token and helper programs included. A pull has no other end
// before its layers are under way: the kubelet waits as long as it takes.
const documentLimit = 2 * time.Minute

// remote is one repository as all its hosts offer it. It serves one pull, with that pull's credentials.
type remote struct {
	ref   Reference
	hosts []*host
	log   *slog.Logger
	count *counters

	patience time.Duration // stallLimit, but in tests
	answers  time.Duration // documentLimit, likewise
}

// remote looks up the hosts of ref's registry and prepares their clients. Close it.
func (s *Store) remote(ref Reference, a *Auth) (*remote, error) {
	list, err := endpoints(s.HostsDir, ref.Registry)
	if err != nil {
		return nil, err
	}
	r := &remote{ref: ref, log: s.logger(), count: &s.count, patience: cmp.Or(s.patience, stallLimit), answers: cmp.Or(s.answers, documentLimit)}
	for _, e := range list {
		h, err := e.dial(ref, s.credentials(e, ref, a))
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("cannot set up host %s of registry %s: %w", e.host, ref.Registry, err)
		}
		r.hosts = append(r.hosts, h)
	}
	return r, nil
}

// Close drops idle connections.
func (r *remote) Close() {
	for _, h := range r.hosts {
		h.client.Client.CloseIdleConnections()
	}
}

// each tries f on every able host in order until one succeeds.
func (r *remote) each(ctx context.Context, what string, able func(*host) bool, f func(*host) error) error {
	failed := &hostsError{what: what}
	for _, h := range r.hosts {
		if !able(h) {
			continue
		}
		err := f(h)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.log.Debug("registry host failed", "host", h.host, "for", what, "error", err)
		failed.add(h.host, err)
	}
	if len(failed.causes) == 0 {
		return fmt.Errorf("cannot get %s: hosts.toml names no host for registry %s that is capable of it", what, r.ref.Registry)
	}
	return failed
}

// answer is each for what comes whole, and soon or not at all.
func (r *remote) answer(ctx context.Context, what string, able func(*host) bool, f func(context.Context, *host) error) error {
	return r.each(ctx, what, able, func(h *host) error {
		limited, stop := context.WithTimeout(ctx, r.answers)
		defer stop()
		err := f(limited, h)
		if err != nil && limited.Err() != nil && ctx.Err() == nil {
			return classed{fmt.Errorf("no whole answer within %v", r.answers), ErrUnavailable}
		}
		return err
	})
}

func canResolve(h *host) bool { return h.resolve }
func canPull(h *host) bool    { return h.pull }

// resolve asks what the reference means now. Even a digest is asked for, since the answer also says whether the
// caller may have it.
func (r *remote) resolve(ctx context.Context) (desc ocispec.Descriptor, err error) {
	able := canResolve
	if r.ref.Digest != "" {
		able = canPull // no trust is needed to name what is already named by its content
	}
	err = r.answer(ctx, r.ref.String(), able, func(ctx context.Context, h *host) (err error) {
		desc, err = h.head(ctx, r.ref.identifier())
		return err
	})
	return desc, err
}

// document fetches a manifest, index or config whole and verified.
func (r *remote) document(ctx context.Context, d ocispec.Descriptor, kind string) (text []byte, err error) {
	err = r.answer(ctx, strings.TrimSuffix(kind, "s")+" "+d.Digest.String(), canPull, func(ctx context.Context, h *host) (err error) {
		text, err = h.document(ctx, kind, d)
		return err
	})
	return text, err
}

func (r *remote) manifest(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	return r.document(ctx, d, "manifests")
}

func (r *remote) config(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	return r.document(ctx, d, "blobs")
}

// host is an endpoint with a client for one repository.
type host struct {
	endpoint
	client *auth.Client
	base   string // of the repository: /v2/library/busybox
	query  string // ns=docker.io, or nothing
	scope  string
	speaks scheme
}

func (h *host) head(ctx context.Context, identifier string) (ocispec.Descriptor, error) {
	resp, err := h.do(ctx, http.MethodHead, "manifests/"+identifier, nil)
	if err != nil {
		return h.headByGet(ctx, identifier, err)
	}
	resp.Body.Close()
	d := ocispec.Descriptor{
		MediaType: resp.Header.Get("Content-Type"),
		Digest:    digest.Digest(resp.Header.Get("Docker-Content-Digest")),
		Size:      resp.ContentLength,
	}
	if d.Digest.Validate() != nil {
		return h.headByGet(ctx, identifier, nil)
	}
	if wanted := digest.Digest(identifier); wanted.Validate() == nil && wanted != d.Digest {
		return d, fmt.Errorf("%w: asked for manifest %s, the registry offers %s", ErrCorrupt, wanted, d.Digest)
	}
	return d, nil
}

// headByGet resolves where HEAD is not supported or has no digest in its answer, as distribution-spec allows.
func (h *host) headByGet(ctx context.Context, identifier string, cause error) (ocispec.Descriptor, error) {
	var status *statusError
	if cause != nil && !(errors.As(cause, &status) && (status.code == http.StatusMethodNotAllowed || status.code == http.StatusNotImplemented)) {
		return ocispec.Descriptor{}, cause
	}
	resp, err := h.do(ctx, http.MethodGet, "manifests/"+identifier, nil)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer resp.Body.Close()
	text, err := readAll(resp.Body, manifestLimit)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	algorithm := digest.Canonical
	if wanted := digest.Digest(identifier); wanted.Validate() == nil {
		algorithm = wanted.Algorithm()
	}
	return ocispec.Descriptor{MediaType: resp.Header.Get("Content-Type"), Digest: algorithm.FromBytes(text), Size: int64(len(text))}, nil
}

func (h *host) document(ctx context.Context, kind string, d ocispec.Descriptor) ([]byte, error) {
	limit := int64(manifestLimit)
	if kind == "blobs" {
		limit = configLimit
	}
	resp, err := h.do(ctx, http.MethodGet, kind+"/"+d.Digest.String(), nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := readAll(resp.Body, limit)
	if err != nil {
		return nil, err
	}
	if got := d.Digest.Algorithm().FromBytes(text); got != d.Digest {
		return nil, fmt.Errorf("%w: wanted %s, got %s", ErrCorrupt, d.Digest, got)
	}
	return text, nil
}

func readAll(r io.Reader, limit int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(text)) > limit {
		return nil, fmt.Errorf("document is longer than %d MiB", limit>>20)
	}
	return text, broken(err)
}

// blob opens a blob from a byte on. Whether the answer starts there is for the caller to see: 206 or 200. The range
// names its end, since not every registry understands an open one.
func (h *host) blob(ctx context.Context, d ocispec.Descriptor, from int64) (*http.Response, error) {
	header := http.Header{}
	if from > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, d.Size-1))
	}
	return h.do(ctx, http.MethodGet, "blobs/"+d.Digest.String(), header)
}

const (
	requestTries = 3
	firstPause   = 100 * time.Millisecond
	longestPause = 5 * time.Second
	longestWish  = 30 * time.Second // of a registry, in Retry-After, that is granted
)

// do sends a request and turns every answer but 200 and 206 into an error. What may pass by itself (429, 5xx, a
// connection that broke) is tried again, so that a mirror is not given up for a hiccup; a host that refuses
// connections is not waited for.
func (h *host) do(ctx context.Context, method, what string, header http.Header) (*http.Response, error) {
	ctx = auth.WithScopesForHost(ctx, h.host, h.scope)
	for try := 1; ; try++ {
		resp, err := h.once(ctx, method, what, header)
		if err == nil || try == requestTries || !passing(err) {
			return resp, err
		}
		if err := pause(ctx, try, err); err != nil {
			return nil, err
		}
	}
}

func (h *host) once(ctx context.Context, method, what string, header http.Header) (*http.Response, error) {
	scheme, err := h.speaks.of(ctx, h)
	if err != nil {
		return nil, transport(err)
	}
	u := url.URL{Scheme: scheme, Host: h.host, Path: h.base + "/" + what, RawQuery: h.query}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header.Clone()
	}
	req.Header["Accept"] = acceptable(what)
	// The client starts no authentication of its own when the operator has configured the header.
	if fixed := h.header.Get("Authorization"); fixed != "" {
		req.Header.Set("Authorization", fixed)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return nil, transport(err)
	}
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent {
		return resp, nil
	}
	return nil, refusal(resp)
}

// pause waits before the next try, as long as the registry asked for if it did.
func pause(ctx context.Context, try int, cause error) error {
	wait := min(firstPause<<(try-1), longestPause)
	wait += time.Duration(rand.Int64N(int64(wait)/2 + 1)) // many nodes pull at the same moment
	var status *statusError
	if errors.As(cause, &status) && status.retryAfter > 0 {
		wait = min(status.retryAfter, longestWish)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
