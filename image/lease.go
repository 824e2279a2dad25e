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
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	if err != nil {
		s.mu.Lock()
		s.expire()
		list := slices.Collect(maps.Values(s.ghosts))
		s.mu.Unlock()
		ghost, missing := findIn(byAge(list), ref)
		if missing != nil {
			return nil, err
		}
		e = ghost
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
	if term < 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leases[id] = time.Now().Add(term)
}

// haunt keeps a removed image for the rest of its lease. Called with mu held.
func (s *Store) haunt(e *entry) {
	if rest := time.Until(s.leases[e.ID]); rest > 0 && !s.closed {
		s.ghosts[e.ID] = e
		s.arm(rest)
	}
}

// arm sets the time at which the next ghost ends. Called with mu held.
func (s *Store) arm(rest time.Duration) {
	if s.expiry != nil {
		s.expiry.Stop()
	}
	s.expiry = time.AfterFunc(rest+time.Millisecond, func() {
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

// expire ends what is over and arms the timer for what is not. Called with mu held.
func (s *Store) expire() {
	now := time.Now()
	maps.DeleteFunc(s.leases, func(_ digest.Digest, until time.Time) bool { return !until.After(now) })
	var next time.Time
	for id := range s.ghosts {
		until, ok := s.leases[id]
		if !ok {
			delete(s.ghosts, id)
		} else if next.IsZero() || until.Before(next) {
			next = until
		}
	}
	if !next.IsZero() && !s.closed {
		s.arm(next.Sub(now))
	}
}
