package image

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
)

const (
	dialLimit   = 30 * time.Second // containerd's default
	answerLimit = 30 * time.Second // from the request's end to the first byte of the answer's header
)

// dial prepares a client; nothing is sent yet. Clients and their token caches live as long as one pull, since
// another pull may bring other credentials.
func (e endpoint) dial(ref Reference, credential auth.CredentialFunc) (*host, error) {
	settings, err := e.tls()
	if err != nil {
		return nil, err
	}
	h := &host{
		endpoint: e,
		base:     e.path + "/" + ref.Repository,
		scope:    auth.ScopeRepository(ref.Repository, auth.ActionPull),
		client: &auth.Client{
			Client:     &http.Client{Transport: &ownHeader{e.transport(settings), e}},
			Header:     http.Header{"User-Agent": {e.userAgent()}},
			Credential: credential,
			Cache:      auth.NewCache(),
			ClientID:   "evenkeel",
		},
	}
	if e.stranger(ref.Registry) {
		h.query = url.Values{"ns": {ref.Registry}}.Encode()
	}
	return h, nil
}

func (e endpoint) transport(settings *tls.Config) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	limit := dialLimit
	if e.dialTimeout > 0 {
		limit = e.dialTimeout
	}
	t.DialContext = (&net.Dialer{Timeout: limit, KeepAlive: 30 * time.Second}).DialContext
	t.TLSClientConfig = settings
	t.ResponseHeaderTimeout = answerLimit
	t.MaxIdleConnsPerHost = 8
	t.DisableCompression = true // bytes are hashed as the registry stores them
	return t
}

func (e endpoint) userAgent() string { return cmp.Or(e.header.Get("User-Agent"), "evenkeel") }

// ownHeader adds the header of hosts.toml to what goes to the host that it was written for. It often holds a secret, and the
// host's answers name others to go on with: a token server, or where a blob lies. In the transport, since what is in the
// client's request follows it to wherever it is redirected.
type ownHeader struct {
	*http.Transport
	endpoint endpoint
}

func (o *ownHeader) RoundTrip(req *http.Request) (*http.Response, error) {
	if len(o.endpoint.header) > 0 && o.endpoint.origin(req.URL) {
		req = req.Clone(req.Context())
		for key, values := range o.endpoint.header {
			// Authorization is set on requests to the registry alone, never on those to a token server at the same place.
			if key != "Authorization" && key != "User-Agent" {
				req.Header[key] = append(req.Header[key], values...)
			}
		}
	}
	return o.Transport.RoundTrip(req)
}

// origin reports whether u is at the host itself: RFC 6454, but for a port that may speak either scheme.
func (e endpoint) origin(u *url.URL) bool {
	known := map[string]string{"http": "80", "https": "443"}
	own := &url.URL{Scheme: e.scheme, Host: e.host}
	return (e.guess || u.Scheme == e.scheme) && strings.EqualFold(u.Hostname(), own.Hostname()) &&
		cmp.Or(u.Port(), known[u.Scheme]) == cmp.Or(own.Port(), known[own.Scheme])
}

func (e endpoint) tls() (*tls.Config, error) {
	settings := &tls.Config{InsecureSkipVerify: e.skipVerify}
	if e.ca != nil {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		settings.RootCAs = pool
	}
	for _, file := range e.ca {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if !settings.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no certificate in PEM form", file)
		}
	}
	for _, pair := range e.client {
		key := pair[1]
		if key == "" {
			key = pair[0]
		}
		certificate, err := tls.LoadX509KeyPair(pair[0], key)
		if err != nil {
			return nil, fmt.Errorf("cannot load client certificate %s: %w", pair[0], err)
		}
		settings.Certificates = append(settings.Certificates, certificate)
	}
	return settings, nil
}

// scheme remembers what a port that may speak https or http turned out to speak.
type scheme struct {
	mu    sync.Mutex // guards known
	known string
}

// of probes at most a few times when several requests start at once; that is cheaper than making them wait on a
// lock that is held over the network.
func (s *scheme) of(ctx context.Context, h *host) (string, error) {
	s.mu.Lock()
	known := s.known
	s.mu.Unlock()
	if !h.guess {
		known = h.scheme
	}
	if known != "" {
		return known, nil
	}
	known, err := h.probe(ctx)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = known
	return known, nil
}

// probe tells https from http by the first record of a handshake.
func (h *host) probe(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+h.host+h.path+"/", nil)
	if err != nil {
		return "", err
	}
	resp, err := h.client.Client.Do(req)
	var plain tls.RecordHeaderError
	switch {
	case err == nil:
		resp.Body.Close()
		return "https", nil
	case errors.As(err, &plain), errors.Is(err, http.ErrSchemeMismatch):
		return "http", nil
	}
	return "", err
}
