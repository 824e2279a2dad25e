// Package hostpath touches paths that others brought: host paths, log directories, devices. The storage behind them may
// never answer, and a process that has asked it cannot even be killed until it does (state D). So the engine never asks
// itself. What the kernel's caches know, of file systems that live in memory or on a local disk, it takes from there;
// everything else is a matter for a helper process with a deadline, which is killed, or left behind where it cannot be.
//
// The helper is the shim program in another mode, so this package links the standard library and x/sys alone.
package hostpath

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// ErrSilent matches the error of a path whose file system did not answer before the context ended.
var ErrSilent = errors.New("its file system does not answer")

// Path is what there is at a path.
type Path struct {
	Real  string // absolute, with symlinks resolved
	Dir   bool
	Mount Mount // the one it lies on
}

// Node is a device node.
type Node struct {
	Path         string
	Kind         string // c or b
	Major, Minor uint32
	Mode         uint32 // permission bits
	UID, GID     uint32
}

// Finder asks about paths. It is safe for concurrent use; the zero value but for Helper works.
type Finder struct {
	Helper string // the program whose first argument Mode makes it Help

	mu      sync.Mutex
	running map[string]*helper // by command line; those that were killed in vain are among them
}

// Resolve follows every symlink of an absolute path. A path that is missing gives an error matching fs.ErrNotExist.
func (f *Finder) Resolve(ctx context.Context, path string) (Path, error) {
	return f.resolve(ctx, "resolve", path)
}

// Make does the same, but makes a missing path a directory first, with mode 0755, as the kubelet expects of host paths.
func (f *Finder) Make(ctx context.Context, path string) (Path, error) {
	return f.resolve(ctx, "make", path)
}

func (f *Finder) resolve(ctx context.Context, verb, path string) (Path, error) {
	if p, ok := cached(path); ok {
		return p, nil
	}
	var p Path
	if err := f.ask(ctx, &p, path, verb, path); err != nil {
		return Path{}, err
	}
	return p, nil
}

// Probe asks the file system itself, and not a cache, whether it still answers at path.
func (f *Finder) Probe(ctx context.Context, path string) error {
	return f.ask(ctx, &Path{}, path, "resolve", path)
}

// Read returns what a regular file holds, up to 1 MiB. A path that is missing gives an error matching fs.ErrNotExist.
func (f *Finder) Read(ctx context.Context, path string) (data []byte, err error) {
	if p, ok := cached(path); ok && !p.Dir {
		return read(path)
	}
	return data, f.ask(ctx, &data, path, "read", path)
}

// Devices returns the device node at path or, for a directory, those below it on the same mount. Their paths begin with
// the given one, whatever it links to. There may be none.
func (f *Finder) Devices(ctx context.Context, path string) ([]Node, error) {
	if p, ok := cached(path); ok && !p.Dir {
		return devices(path)
	}
	var nodes []Node
	return nodes, f.ask(ctx, &nodes, path, "devices", path)
}

// Relabel gives a file, or a directory and all below it, an SELinux label (security.selinux). Links are not followed.
func (f *Finder) Relabel(ctx context.Context, path, label string) error {
	return f.ask(ctx, &struct{}{}, path, "relabel", path, label)
}

// silent names the file system without asking it anything.
func silent(ctx context.Context, path string) error {
	where := ""
	if m := lexical(path); m.Point != "" {
		where = fmt.Sprintf(" (%s, mounted at %s)", m.Type, m.Point)
	}
	return fmt.Errorf("%w%s: %w", ErrSilent, where, context.Cause(ctx))
}
