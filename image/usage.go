package image

import "github.com/opencontainers/go-digest"

// Usage is what an image occupies.
type Usage struct {
	*Image
	Shared int64 // bytes of Size that other images need as well
}

// Usage lists all images with what they share, newest first, from memory.
func (s *Store) Usage() []Usage {
	list := s.entries()
	users := map[digest.Digest]int{}
	for _, e := range list {
		for _, l := range e.image.Layers {
			users[l.DiffID]++
		}
	}
	var usage []Usage
	for _, e := range list {
		u := Usage{Image: e.image}
		for _, l := range e.image.Layers {
			if users[l.DiffID] > 1 {
				u.Shared += l.Size
			}
		}
		usage = append(usage, u)
	}
	return usage
}
