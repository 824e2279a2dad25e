package sandbox

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// layerDiff tells what a container has done to its root file system: what it made or changed, as an archive, and the names
// of what it removed. It reads the upper directory of the overlay (kernel, Documentation/filesystems/overlayfs.rst).
//
// Other containers of the pod may reach these files while they are read, so names are resolved below the directory only.
type layerDiff struct {
	upper    *os.Root
	lower    []string // directories of the image's layers
	out      *tar.Writer
	linked   map[uint64]string // names of inodes that have several
	gone     []string
	uid, gid int // of the container's root on the node
}

// writerUntil fails once ctx has ended: a layer can be large, and the container stands still meanwhile.
type writerUntil struct {
	ctx context.Context
	io.Writer
}

func (w writerUntil) Write(p []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	return w.Writer.Write(p)
}

// dumpLayer writes the two files of the checkpoint that say so.
func (c checkpoint) dumpLayer(ctx context.Context) error {
	upper, err := os.OpenRoot(filepath.Join(c.containerRoot(c.id), "upper"))
	if err != nil {
		return err
	}
	defer upper.Close()
	f, err := os.OpenFile(filepath.Join(c.dir, layerArchive), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	d := layerDiff{upper: upper, out: tar.NewWriter(writerUntil{ctx, f}), linked: map[uint64]string{}}
	for _, l := range c.facts().Layers {
		d.lower = append(d.lower, l.Dir)
	}
	if pod, err := c.pod(); err == nil && pod.idMap() != nil {
		d.uid, d.gid = pod.idMap().UID, pod.idMap().GID
	}
	if err := errors.Join(d.directory("."), d.out.Close()); err != nil {
		return fmt.Errorf("cannot read the writable layer: %w", err)
	}
	deletions, err := json.Marshal(d.gone)
	if err != nil || len(d.gone) == 0 {
		return err
	}
	return os.WriteFile(filepath.Join(c.dir, layerDeletions), deletions, 0o600)
}

func (d *layerDiff) directory(name string) error {
	f, err := d.upper.Open(name)
	if err != nil {
		return err
	}
	entries, err := f.ReadDir(-1)
	f.Close()
	if err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, entry := range entries {
		if err := d.entry(path.Join(name, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (d *layerDiff) entry(name string) error {
	info, err := d.upper.Lstat(name)
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	switch {
	case info.Mode()&fs.ModeSocket != 0: // its listener is in CRIU's images
		return nil
	case info.Mode()&fs.ModeCharDevice != 0 && st.Rdev == 0: // a whiteout
		d.gone = append(d.gone, name)
		return nil
	}
	h, err := d.header(name, info)
	if err != nil {
		return err
	}
	if first, again := d.linked[st.Ino]; again && st.Nlink > 1 && !info.IsDir() {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		return d.out.WriteHeader(h)
	}
	d.linked[st.Ino] = name
	switch {
	case info.IsDir():
		return d.subdirectory(name, h)
	case info.Mode().IsRegular():
		return d.file(name, h)
	}
	return d.out.WriteHeader(h)
}

func (d *layerDiff) header(name string, info fs.FileInfo) (*tar.Header, error) {
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		var err error
		if target, err = d.upper.Readlink(name); err != nil {
			return nil, err
		}
	}
	h, err := tar.FileInfoHeader(anonymous{info}, target)
	if err != nil {
		return nil, err
	}
	h.Name, h.Format = name, tar.FormatPAX
	h.Uid, h.Gid = h.Uid-d.uid, h.Gid-d.gid
	return h, nil
}

// open does not wait for the writer of a pipe that has taken a file's place.
func (d *layerDiff) open(name string, flags int) (*os.File, error) {
	return d.upper.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|flags, 0)
}

func (d *layerDiff) file(name string, h *tar.Header) error {
	f, err := d.open(name, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := attributes(f, h); err != nil {
		return err
	}
	return addContent(d.out, h, f)
}

func (d *layerDiff) subdirectory(name string, h *tar.Header) error {
	f, err := d.open(name, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	err = attributes(f, h)
	opaque, redirected := hasAttribute(f, "trusted.overlay.opaque"), hasAttribute(f, "trusted.overlay.redirect")
	f.Close()
	if err != nil {
		return err
	}
	if redirected {
		return fmt.Errorf("/%s is a renamed directory of the image, which a checkpoint cannot express (mount option redirect_dir)", name)
	}
	if opaque {
		d.hidden(name)
	}
	h.Name += "/"
	if err := d.out.WriteHeader(h); err != nil {
		return err
	}
	return d.directory(name)
}

// hidden notes what the image has in a directory that the container has made anew, all of which is gone.
func (d *layerDiff) hidden(name string) {
	for _, layer := range d.lower {
		entries, _ := os.ReadDir(filepath.Join(layer, name))
		for _, entry := range entries {
			path := path.Join(name, entry.Name())
			if _, err := d.upper.Lstat(path); errors.Is(err, fs.ErrNotExist) && !slices.Contains(d.gone, path) {
				d.gone = append(d.gone, path)
			}
		}
	}
}

func hasAttribute(f *os.File, name string) bool {
	_, err := unix.Fgetxattr(int(f.Fd()), name, nil)
	return err == nil
}

// attributes adds the extended ones, such as file capabilities, but not those by which the overlay remembers things.
func attributes(f *os.File, h *tar.Header) error {
	names := make([]byte, 64<<10) // XATTR_LIST_MAX, as is that of a value
	n, err := unix.Flistxattr(int(f.Fd()), names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(int(f.Fd()), name, value)
		if err != nil {
			return fmt.Errorf("cannot read attribute %s of %s: %w", name, h.Name, err)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = string(value[:n])
	}
	return nil
}
