package image

import (
	"context"
	"errors"

	"github.com/opencontainers/go-digest"

	"github.com/evenkeel/evenkeel/image/layer"
)

// Report is what a Check found.
type Report struct {
	Layers       int             // that were read
	Bytes        int64           // in them
	Unverifiable []digest.Digest // layers that nothing can be compared with
	Damages      []Damage
	Broken       []BrokenImage // images that lack a layer, after any repair
}

// Damage is one layer that is not what was unpacked.
type Damage struct {
	Layer  digest.Digest
	Reason string
	Images []*Image // that need it
	InUse  bool     // containers stand on it
}

// BrokenImage is one that is not listed until its missing layers have been fetched.
type BrokenImage struct {
	Image  *Image
	Reason string // why the repair failed; empty: none was tried
}

// Check reads every layer from disk while the store is in use, at low priority, and takes images with damaged layers out
// of the list. With repair, it then fetches the damaged layers alone; containers keep standing on the damaged ones until
// they are started again. progress is told of each layer that has been read; nil: not wanted. The error is the context's
// or the disk's: damage is no error but in the report.
func (s *Store) Check(ctx context.Context, repair bool, progress func(read, of int)) (Report, error) {
	if err := s.open(); err != nil {
		return Report{}, err
	}
	report, err := s.check(ctx, s.layerRecords(), progress)
	if err != nil {
		return report, err
	}
	for _, e := range s.brokenEntries() {
		reason := ""
		if repair {
			err := s.heal(ctx, e)
			if err == nil {
				continue
			}
			reason = err.Error()
		}
		report.Broken = append(report.Broken, BrokenImage{e.image, reason})
	}
	return report, context.Cause(ctx)
}

func (s *Store) check(ctx context.Context, list []layerRecord, progress func(read, of int)) (report Report, err error) {
	for i, l := range list {
		if err := s.checkOne(ctx, l, &report); err != nil {
			return report, err
		}
		if progress != nil {
			progress(i+1, len(list))
		}
	}
	return report, nil
}

func (s *Store) checkOne(ctx context.Context, l layerRecord, report *Report) error {
	s.hold(l.DiffID)
	defer s.release(l.DiffID)
	if !s.has(l.DiffID) {
		return nil // removed since the list was made
	}
	err := atLowPriority(func() error { return s.verify(ctx, l) })
	report.Layers++
	report.Bytes += l.Bytes
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errUnverifiable):
		report.Unverifiable = append(report.Unverifiable, l.DiffID)
		return nil
	case !errors.Is(err, layer.ErrDamaged):
		return err
	}
	s.count.damaged.Add(1)
	d := Damage{Layer: l.DiffID, Reason: err.Error(), InUse: s.InUse != nil && s.InUse()[l.DiffID]}
	images, failed := s.condemn(ctx, l.DiffID)
	for _, e := range images {
		d.Images = append(d.Images, e.image)
		s.logger().Error("layer is damaged; its image is not listed until the layer has been fetched again",
			"layer", l.DiffID, "image", e.ID, "tags", e.Tags, "in use", d.InUse, "error", err)
	}
	report.Damages = append(report.Damages, d)
	return failed
}
