package main

import (
	"context"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pulls measures images of many MiB.
func (s *session) pulls(ctx context.Context) error {
	_, images := s.Client()
	resetPeak(s.PID())
	for row, name := range map[string]string{pullEightRow: "eight:1", pullOneRow: "one:1"} {
		begin := time.Now()
		if err := s.pull(ctx, s.images.Host+"/"+name); err != nil {
			return err
		}
		s.add(row, time.Since(begin).Seconds())
	}
	s.add(pullPeakRow, peak(s.PID()))
	begin := time.Now()
	_, err := images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: s.images.Host + "/eight:1"}})
	s.add(removeImageRow, milliseconds(time.Since(begin)))
	return err
}
