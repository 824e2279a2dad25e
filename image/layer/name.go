package layer

import (
	"fmt"
	"path"
	"strings"
)

// Whiteout names of the OCI image specification, layer.md.
const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh." // bookkeeping of aufs, which old images still carry: no content of the layer
)

// cleanName turns an entry's name into a relative path without dots; the layer's root is ".". Absolute names are taken
// from the root, as every unpacker does. A name that climbs out is nobody's honest work and is refused.
func cleanName(name string, limit int64) (string, error) {
	if int64(len(name)) > limit {
		return "", fmt.Errorf("%w: the name has %d bytes, more than %d", ErrLimit, len(name), limit)
	}
	if strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("%w: the name contains a NUL byte", ErrMalformed)
	}
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fmt.Errorf("%w: the name %q leaves the layer", ErrMalformed, shorten(name))
	}
	return clean, nil
}

// split divides a clean path into its directory, "." for the root, and the last element.
func split(clean string) (dir, base string) {
	i := strings.LastIndexByte(clean, '/')
	if i < 0 {
		return ".", clean
	}
	return clean[:i], clean[i+1:]
}

// kind says what a name means before its type is looked at.
type kind int

const (
	plain    kind = iota
	whiteout      // hides base in lower layers
	opaque        // hides all that lower layers have in dir
	ignored
)

// classify tells whiteouts from ordinary names and returns the name that a whiteout hides.
func classify(dir, base string) (kind, string, error) {
	if strings.Contains(dir, whiteoutPrefix) {
		for _, element := range strings.Split(dir, "/") {
			if strings.HasPrefix(element, aufsPrefix) {
				return ignored, "", nil
			}
			if strings.HasPrefix(element, whiteoutPrefix) {
				return plain, "", fmt.Errorf("%w: a whiteout cannot be a directory", ErrMalformed)
			}
		}
	}
	switch {
	case !strings.HasPrefix(base, whiteoutPrefix):
		return plain, base, nil
	case base == opaqueName:
		return opaque, "", nil
	case strings.HasPrefix(base, aufsPrefix):
		return ignored, "", nil
	}
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return plain, "", fmt.Errorf("%w: the whiteout %q names no file", ErrMalformed, base)
	}
	return whiteout, hidden, nil
}

// shorten keeps an error readable whatever the stream calls its files.
func shorten(name string) string {
	if len(name) <= 256 {
		return name
	}
	return name[:256] + "…"
}
