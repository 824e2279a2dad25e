package image

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// pullKey is what makes two pulls the same. Credentials are part of it: who may not have an image must not get it
// because somebody else who may is just pulling it. Their layers are shared all the same, by content.
type pullKey struct {
	ref, platform string
	auth          Auth
}

// Pull fetches what is missing and returns the image. Concurrent pulls of one reference join; the work ends early only
// when the last caller has gone. Errors are ErrReference, ErrUnavailable, ErrDenied, ErrNotFound, ErrPlatform, ErrCorrupt, the
// context's, or the disk's.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (*Image, error) {
	name, err := ParseReference(ref)
	if err != nil {
		return nil, err
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	want := thisMachine()
	if o.Platform != nil {
		want = normal(*o.Platform)
	} else if name.Digest != "" {
		want.OSFeatures = append(want.OSFeatures, orEmulated)
	}
	key := pullKey{ref: name.String(), platform: platformName(want)}
	if o.Auth != nil {
		key.auth = *o.Auth
	}
	work := func(ctx context.Context, tell func(Progress)) (*Image, error) {
		return s.pullLogged(ctx, name, want, o.Auth, tell)
	}
	fl, _ := s.pulls.join(ctx, key, o.Progress, work)
	defer s.pulls.leave(key, fl, nil)
	img, err := fl.wait(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot pull %s: %w", name, err)
	}
	return img, nil
}

// pullLogged is one pull, whoever waits for it. Its end is logged with what it did; its failure is the callers' to log.
func (s *Store) pullLogged(ctx context.Context, name Reference, want ocispec.Platform, a *Auth, tell func(Progress)) (*Image, error) {
	s.count.pulling.Add(1)
	defer s.count.pulling.Add(-1)
	start, sums := time.Now(), &pullSums{}
	s.logger().Debug("pulling image", "image", name.String(), "platform", platformName(want))
	img, err := s.pull(ctx, name, want, a, func(p Progress) { sums.add(p); tell(p) })
	s.count.pulled(time.Since(start), err)
	if err == nil {
		s.logger().Info("image pulled", "image", name.String(), "id", img.ID, "size", img.Size,
			"layers", len(img.Layers), "fetched", sums.fetched.Load(), "bytes", sums.bytes.Load(), "took", time.Since(start).Round(time.Millisecond))
	}
	return img, err
}

// pullSums adds up what one pull fetched.
type pullSums struct{ fetched, bytes atomic.Int64 }

func (t *pullSums) add(p Progress) {
	if p.Phase == "done" {
		t.fetched.Add(1)
		t.bytes.Add(p.Total)
	}
}

func (s *Store) pull(ctx context.Context, name Reference, want ocispec.Platform, a *Auth, tell func(Progress)) (*Image, error) {
	src, err := s.remote(name, a)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	desc, err := src.resolve(ctx)
	if err != nil {
		return nil, err
	}
	called := names{digests: []string{name.Name() + "@" + desc.Digest.String()}}
	if name.Tag != "" {
		called.tags = []string{name.String()}
	}
	if img, err := s.rename(ctx, desc, want, called); img != nil || err != nil {
		return img, err
	}
	p, err := makePlan(ctx, src, desc, want)
	if err != nil {
		return nil, err
	}
	return s.bring(ctx, src, p, called, tell)
}

// rename serves a pull whose content is all here under some name already. It returns nil if it is not.
func (s *Store) rename(ctx context.Context, desc ocispec.Descriptor, want ocispec.Platform, called names) (*Image, error) {
	if s.known(desc.Digest, want) == nil {
		return nil, nil
	}
	if err := s.turn.take(ctx); err != nil {
		return nil, err
	}
	defer s.turn.give()
	e := s.known(desc.Digest, want)
	if e == nil {
		return nil, nil
	}
	return s.write(ctx, e.record, called)
}

// bring is the one way in which an image gets into the store, from a registry or from an archive.
func (s *Store) bring(ctx context.Context, src source, p *plan, called names, tell func(Progress)) (*Image, error) {
	w := &work{Store: s, src: src, tell: tell, lost: s.lostSyncs.Load()}
	img, err := w.run(ctx, p, called)
	if failed := w.end(ctx, err != nil); err == nil && failed != nil {
		s.logger().Warn("cannot clear up after a pull; the next start tries again", "image", p.id(), "error", failed)
	} else {
		err = errors.Join(err, failed)
	}
	if err != nil {
		return nil, err
	}
	return img, nil
}
