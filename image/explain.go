package image

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// Explanation is how a pull of a reference would go.
type Explanation struct {
	Reference string // in full
	Here      bool   // the reference names an image in the store
	Platform  string // that would be chosen
	HostsFile string // what was read; empty: nothing is configured for the registry
	Hosts     []HostExplanation
	Error     error // why no host could be asked
}

// HostExplanation is one host, in the order of asking.
type HostExplanation struct {
	URL           string // of the API
	Mirror        bool   // not the registry itself
	Resolve, Pull bool   // what it is asked for: what a tag means, content
	SkipVerify    bool
	PlainAllowed  bool     // plain http is used if the port does not speak TLS
	CA, Client    []string // files, besides the system's authorities
	Headers       []string // names alone
	Credentials   string   // where they come from; empty: anonymous. Never what they are.
	Digest        digest.Digest
	Took          time.Duration
	Error         error // of the dry run
}

// Explain asks every host of ref's registry, mirrors and all, what ref means, and says how each is asked. Nothing is
// fetched or changed. The error is ErrReference.
func (s *Store) Explain(ctx context.Context, ref string, a *Auth) (Explanation, error) {
	name, err := ParseReference(ref)
	if err != nil {
		return Explanation{}, err
	}
	e := Explanation{Reference: name.String(), Platform: platformName(thisMachine())}
	_, missing := s.find(name.String())
	e.Here = missing == nil
	e.HostsFile, _ = hostDir(s.HostsDir, name.Registry)
	list, err := endpoints(s.HostsDir, name.Registry)
	if err != nil {
		e.Error = err
		return e, nil
	}
	for _, at := range list {
		e.Hosts = append(e.Hosts, s.explainHost(ctx, at, name, a))
	}
	return e, nil
}

func (s *Store) explainHost(ctx context.Context, at endpoint, name Reference, a *Auth) HostExplanation {
	x := HostExplanation{
		URL: at.scheme + "://" + at.host + at.path, Mirror: !at.own, Resolve: at.resolve, Pull: at.pull,
		SkipVerify: at.skipVerify, PlainAllowed: at.guess, CA: at.ca, Headers: slices.Sorted(maps.Keys(at.header)),
	}
	for _, pair := range at.client {
		x.Client = append(x.Client, pair[0])
	}
	var source string
	_, source, err := s.credential(ctx, at, name, a)
	x.Credentials = source
	if err != nil {
		x.Error = err
		return x
	}
	h, err := at.dial(name, s.credentials(at, name, a))
	if err != nil {
		x.Error = err
		return x
	}
	defer h.client.Client.CloseIdleConnections()
	start := time.Now()
	desc, err := h.head(ctx, name.identifier())
	x.Took, x.Digest, x.Error = time.Since(start), desc.Digest, err
	if errors.Is(err, ErrDenied) && !at.own && a != nil {
		x.Error = errors.Join(err, errors.New("the pull's credentials are for the registry and not offered to this mirror; list it in images.share_credentials if it should get them"))
	}
	return x
}
