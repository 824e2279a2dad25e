// Package cpio writes the archives that a kernel unpacks as its first root file system: the "newc" format of the
// kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Archives may follow one another in one file.
package cpio

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// File type bits of a mode, as stat(2) has them.
const (
	Regular = 0o100000
	Dir     = 0o040000
	Symlink = 0o120000
	Device  = 0o020000 // a character device
)

// An Entry is one file. Name has no leading slash.
type Entry struct {
	Name         string
	Mode         uint32 // type and permission bits
	Size         int64
	Major, Minor uint32 // of a device
}

// A Writer makes one archive. The first error sticks and is returned by Close.
type Writer struct {
	w     io.Writer
	inode uint32
	dirs  map[string]bool
	err   error
}

func NewWriter(w io.Writer) *Writer { return &Writer{w: w, dirs: map[string]bool{}} }

// Add writes one entry with its content, after the directories that it stands in.
func (w *Writer) Add(e Entry, content io.Reader) {
	e.Name = strings.Trim(path.Clean("/"+e.Name), "/")
	if e.Name == "" || e.Mode&0o170000 == Dir && w.dirs[e.Name] {
		return
	}
	w.parents(e.Name)
	if e.Mode&0o170000 == Dir {
		w.dirs[e.Name] = true
	}
	w.write(e, content)
}

func (w *Writer) parents(name string) {
	if dir := path.Dir(name); dir != "." && !w.dirs[dir] {
		w.Add(Entry{Name: dir, Mode: Dir | 0o755}, nil)
	}
}

func (w *Writer) write(e Entry, content io.Reader) {
	w.inode++
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		w.inode, e.Mode, 0, 0, 1, 0, e.Size, 0, 0, e.Major, e.Minor, len(e.Name)+1, 0)
	w.put(strings.NewReader(header+e.Name+"\x00"), int64(len(header)+len(e.Name)+1))
	if e.Size > 0 {
		w.put(content, e.Size)
	}
}

// put writes n bytes and pads them to four.
func (w *Writer) put(r io.Reader, n int64) {
	if w.err != nil {
		return
	}
	if _, w.err = io.CopyN(w.w, r, n); w.err == nil && n%4 != 0 {
		_, w.err = w.w.Write(make([]byte, 4-n%4))
	}
}

// Directory adds an empty directory.
func (w *Writer) Directory(name string, perm uint32) { w.Add(Entry{Name: name, Mode: Dir | perm}, nil) }

// Link adds a symbolic link.
func (w *Writer) Link(name, target string) {
	w.Add(Entry{Name: name, Mode: Symlink | 0o777, Size: int64(len(target))}, strings.NewReader(target))
}

// Bytes adds a regular file.
func (w *Writer) Bytes(name string, perm uint32, content string) {
	w.Add(Entry{Name: name, Mode: Regular | perm, Size: int64(len(content))}, strings.NewReader(content))
}

// File adds a regular file of this machine.
func (w *Writer) File(name, from string) {
	f, err := os.Open(from)
	if err != nil {
		w.fail(err)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		w.fail(err)
		return
	}
	w.Add(Entry{Name: name, Mode: Regular | uint32(info.Mode().Perm()), Size: info.Size()}, f)
}

// Tree adds the regular files and directories below a directory of this machine.
func (w *Writer) Tree(name, from string) {
	err := filepath.WalkDir(from, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		inside, err := filepath.Rel(from, at)
		if d.IsDir() {
			w.Directory(path.Join(name, inside), 0o755)
		} else if d.Type().IsRegular() {
			w.File(path.Join(name, inside), at)
		}
		return err
	})
	if err != nil {
		w.fail(err)
	}
}

// Tar adds an entry of a tar archive under another name. Hard links become symbolic ones, which the files of packages
// do not tell from each other.
func (w *Writer) Tar(name string, h *tar.Header, content io.Reader) {
	switch h.Typeflag {
	case tar.TypeDir:
		w.Directory(name, uint32(h.Mode&0o7777))
	case tar.TypeReg:
		w.Add(Entry{Name: name, Mode: Regular | uint32(h.Mode&0o7777), Size: h.Size}, content)
	case tar.TypeSymlink:
		w.Link(name, h.Linkname)
	case tar.TypeLink:
		w.Link(name, path.Join("/", h.Linkname))
	}
}

// CharDevice adds a device node.
func (w *Writer) CharDevice(name string, perm, major, minor uint32) {
	w.Add(Entry{Name: name, Mode: Device | perm, Major: major, Minor: minor}, nil)
}

func (w *Writer) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

// Close ends the archive and pads it so that another may follow.
func (w *Writer) Close() error {
	w.write(Entry{Name: "TRAILER!!!"}, nil)
	return w.err
}
