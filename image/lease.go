package image

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// The kubelet pulls or looks up an image, and some time later asks for a container of it, by id. In between its garbage
// collection, or an operator, may remove that image: then a pod that did nothing wrong fails. A removal that is refused
// would be an error to the one who asked, and the CRI wants a removed image out of the list at once. So a removed image
// becomes a ghost for the rest of its lease: no name finds it any more but for Find, and its layers stay.
//
// Ghosts live in memory alone. After a restart of the daemon the layers of a removed image are collected, and the kubelet
// looks again before it asks.

const leaseTime = 2 * time.Minute

// Find is Get for whoever starts a container: it also finds an image that was removed within its lease, and refuses an
// artifact, which has nothing to start.
func (s *Store) Find(ref string) (*Image, error) {
	e, err := s.leased(ref)
	if err != nil {
		return nil, err
	}
	if e.Artifact != "" {
		return nil, fmt.Errorf("%w: %s is an OCI artifact of type %s; it can be mounted as an image volume, not run", ErrArtifact, ref, e.Artifact)
	}
	return e.image, nil
}

// leased finds an image or a ghost and renews its lease.
func (s *Store) leased(ref string) (*entry, error) {
	e, err := s.find(ref)
	if errors.Is(err, ErrNotFound) {
		ghost, missing := findIn(s.haunting(), ref)
		if missing != nil {
			return nil, err
		}
		e, err = ghost, nil
	}
	if err != nil {
		return nil, err
	}
	s.lease(e.ID)
	return e, nil
}

// lease begins an image's lease, or renews it.
func (s *Store) lease(id digest.Digest) {
	term := s.Lease
	if term == 0 {
		term = leaseTime
	}
	if term > 0 {
		s.leaseUntil(id, time.Now().Add(term))
	}
}

// arm has the layers of the next ghost freed when its lease ends. Whatever renews the lease meanwhile is seen then.
func (s *Store) arm(next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expiry != nil {
		s.expiry.Stop()
	}
	if next.IsZero() || s.closed {
		return
	}
	s.expiry = time.AfterFunc(time.Until(next)+time.Millisecond, func() {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return
		}
		s.background.Add(1) // under mu: Close waits for those that were counted before it closed
		ctx := s.chores
		s.mu.Unlock()
		defer s.background.Done()
		if err := s.Collect(ctx); err != nil && ctx.Err() == nil {
			s.logger().Warn("cannot free the layers of a removed image; the next removal tries again", "error", err)
		}
	})
}

func (x *index) leaseUntil(id digest.Digest, end time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.leases[id] = end
}

// haunting lists the ghosts.
func (x *index) haunting() []*entry {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.expire()
	return byAge(slices.Collect(maps.Values(x.ghosts)))
}

// nextExpiry is when the first lease of a ghost ends; zero: there is none.
func (x *index) nextExpiry() (next time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for id := range x.ghosts {
		if end := x.leases[id]; next.IsZero() || end.Before(next) {
			next = end
		}
	}
	return next
}

// expire ends what is over. Called with mu held.
func (x *index) expire() {
	now := time.Now()
	maps.DeleteFunc(x.leases, func(_ digest.Digest, end time.Time) bool { return !end.After(now) })
	maps.DeleteFunc(x.ghosts, func(id digest.Digest, _ *entry) bool { return x.leases[id].IsZero() })
}
