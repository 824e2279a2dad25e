package layer

import (
	"archive/tar"
	"context"
	"fmt"
	"hash"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// Verify reads a layer from disk as its recipe says, compares what each entry says of owner, mode, time, link and
// attributes with what is there, and writes the archive into h: its sum tells whether the content is right. Errors are
// ErrDamaged and name the first file that is wrong, the context's, or the disk's. It writes nothing, not even access times.
func Verify(ctx context.Context, dir string, recipe io.Reader, h hash.Hash) error {
	archive, err := Replay(dir, recipe)
	if err != nil {
		return err
	}
	defer archive.Close()
	root, err := openTree(dir, DefaultLimits.NameLength)
	if err != nil {
		return err
	}
	defer root.close()
	v := &verifier{tree: root, wrong: map[string]string{}}
	stream := io.TeeReader(archive, h)
	if err := v.entries(ctx, tar.NewReader(stream)); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return err
	}
	for name, why := range v.wrong {
		return fmt.Errorf("%w: %q: %s", ErrDamaged, shorten(name), why)
	}
	return nil
}

// verifier collects what is wrong by path. An entry that a later one of the same name changed is wrong only until that
// comes.
type verifier struct {
	tree  *tree
	wrong map[string]string
	size  int // bytes that wrong takes
}

// maxWrong is thousands of entries, more than are wrong for a while in any sound layer: writers of layers name an entry once. Each is
// looked at again for each entry that follows (replaced).
const maxWrong = 1 << 20

func (v *verifier) complain(name, why string) error {
	v.drop(name)
	v.wrong[name] = why
	if v.size += perName + len(name) + len(why); v.size > maxWrong {
		return fmt.Errorf("%w: %q: %s, and so on", ErrDamaged, shorten(name), why)
	}
	return nil
}

func (v *verifier) drop(name string) {
	if why, is := v.wrong[name]; is {
		delete(v.wrong, name)
		v.size -= perName + len(name) + len(why)
	}
}

func (v *verifier) entries(ctx context.Context, archive *tar.Reader) error {
	for {
		header, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if header == nil { // tar.ErrInsecurePath comes with one
			return err
		}
		if header.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := v.entry(header); err != nil {
			return err
		}
	}
}

func (v *verifier) entry(h *tar.Header) error {
	name, err := cleanName(h.Name, DefaultLimits.NameLength)
	if err != nil || name == "." {
		return err
	}
	dir, base := split(name)
	kind, base, err := classify(dir, base)
	if err != nil || kind == ignored || kind == opaque {
		return err
	}
	if h.Typeflag != tar.TypeDir {
		v.replaced(name)
	}
	why := ""
	if fd, err := v.tree.find(dir); err != nil {
		why = fmt.Sprintf("its directory cannot be opened: %v", err)
	} else if kind == whiteout {
		why = whiteoutMissing(fd, base)
	} else {
		why = differs(fd, base, h)
	}
	if why != "" {
		return v.complain(name, why)
	}
	v.drop(name)
	return nil
}

// replaced drops complaints about what lay below a directory that is none any more.
func (v *verifier) replaced(name string) {
	below := name + "/"
	for p := range v.wrong {
		if strings.HasPrefix(p, below) {
			v.drop(p)
		}
	}
}

func whiteoutMissing(dir int, base string) string {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Sprintf("the whiteout is gone: %v", err)
	}
	return "" // or an entry of this layer, which hides what is below as well
}

var typeBits = map[byte]uint32{
	tar.TypeReg: unix.S_IFREG, '\x00': unix.S_IFREG, tar.TypeCont: unix.S_IFREG, tar.TypeGNUSparse: unix.S_IFREG, tar.TypeDir: unix.S_IFDIR,
	tar.TypeSymlink: unix.S_IFLNK, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO,
}

// differs says what an entry on disk has other than its header says. Size and content of files are in the digest, and the
// times of directories change with every entry in them.
func differs(dir int, base string, h *tar.Header) string {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err.Error()
	}
	if h.Typeflag == tar.TypeLink {
		return "" // owner and mode are those of the entry that it links to
	}
	want := uint32(h.Mode) & 0o7777
	switch {
	case st.Mode&unix.S_IFMT != typeBits[h.Typeflag]:
		return fmt.Sprintf("it has type %#o", st.Mode&unix.S_IFMT)
	case int(st.Uid) != h.Uid || int(st.Gid) != h.Gid:
		return fmt.Sprintf("its owner is %d:%d, not %d:%d", st.Uid, st.Gid, h.Uid, h.Gid)
	case h.Typeflag == tar.TypeSymlink:
		return linkDiffers(dir, base, h.Linkname)
	case st.Mode&0o7777 != want:
		return fmt.Sprintf("its mode is %#o, not %#o", st.Mode&0o7777, want)
	case (h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock) && st.Rdev != unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)):
		return "it is another device"
	case h.Typeflag != tar.TypeDir && h.ModTime.Unix() >= 0 && h.ModTime.Unix() < 1<<31 && st.Mtim.Sec != h.ModTime.Unix():
		return "it was modified"
	}
	return capabilityDiffers(dir, base, h)
}

func linkDiffers(dir int, base, want string) string {
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, base, target)
	if err != nil {
		return err.Error()
	}
	if string(target[:n]) != want {
		return "it links to somewhere else"
	}
	return ""
}

// capabilityDiffers looks at the one attribute that gives a file power.
func capabilityDiffers(dir int, base string, h *tar.Header) string {
	want, ok := h.PAXRecords[paxXattr+"security.capability"]
	if !ok || typeBits[h.Typeflag] != unix.S_IFREG {
		return ""
	}
	value := make([]byte, 64)
	n, err := unix.Lgetxattr(descriptorPath(dir)+"/"+base, "security.capability", value)
	if err == unix.ENOTSUP || err == nil && string(value[:n]) == want {
		return ""
	}
	return "it lost its capabilities"
}
