package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/internal/effect"
)

// Layers are unpacked without sight of those below them. Where an archive has a/b but no entry for a, the layer gets a
// plain directory a, and in an overlay it would hide the owner and mode that a lower layer gave to a: /tmp would lose
// its sticky bit to a layer that brings tmp/x alone. An image with such layers gets one more on top, the mend, that
// holds nothing but these directories as the lower layers describe them. It is kept like any other layer, under the
// digest of its description.

var mendLayers = effect.New("image.layer.mend")

// stack is an image's unpacked layers, highest first.
type stack []tree

// tree is one unpacked layer.
type tree struct {
	dir     *os.File
	fs      string
	implied map[string]bool
}

// mended is one directory of a mend.
type mended struct {
	Path       string            `json:"path"`
	Mode       uint32            `json:"mode"`
	UID        uint32            `json:"uid"`
	GID        uint32            `json:"gid"`
	ModifiedAt int64             `json:"modifiedAt"` // ns
	Xattrs     map[string][]byte `json:"xattrs,omitempty"`
}

// mend makes the image's mend in ingest, if it needs one that is not in place yet, and returns its digest.
func (w *work) mend(ctx context.Context, p *plan) (id digest.Digest, err error) {
	if p.artifact != "" {
		return "", nil // its files say nothing about directories
	}
	s, err := w.stack(p.layers)
	defer s.close()
	if err != nil {
		return "", err
	}
	for _, p := range s.hiddenLinks() {
		w.logger().Warn("an upper layer has files below a path that a lower layer made a link, without an entry for it; the link is hidden", "path", p)
	}
	list, err := s.describe()
	if err != nil || len(list) == 0 {
		return "", err
	}
	text, err := json.Marshal(list)
	if err != nil {
		return "", err
	}
	id = digest.FromBytes(text)
	w.hold(id)
	w.held = append(w.held, id)
	if w.has(id) {
		return id, nil
	}
	return id, mendLayers.Do(ctx, func() error {
		w.mending, err = os.MkdirTemp(w.ingest(), "mend-")
		if err != nil {
			return err
		}
		return makeMend(w.mending, id, list)
	})
}

// stack opens the layers. Through descriptors, since another work that shares a layer may move it to its place at any
// moment. The caller closes the stack, also after an error.
func (w *work) stack(layers []blob) (s stack, err error) {
	for _, l := range slices.Backward(layers) {
		place := []string{w.layerDir(l.diffID)}
		if fl := w.share[l.diffID]; fl != nil {
			place = append([]string{fl.value}, place...)
		}
		t, err := openTree(place)
		if err != nil {
			return s, err
		}
		s = append(s, t)
	}
	return s, nil
}

// openTree opens the layer at the first place where it is.
func openTree(places []string) (t tree, err error) {
	for _, dir := range places {
		if t.dir, err = os.Open(dir); err == nil {
			break
		}
	}
	if err != nil {
		return t, err
	}
	t.fs = fmt.Sprintf("/proc/self/fd/%d/fs", t.dir.Fd())
	r, err := readLayerRecord(filepath.Dir(t.fs))
	if err != nil {
		t.dir.Close()
		return t, err
	}
	t.implied = map[string]bool{}
	for _, p := range r.Implied {
		t.implied[strings.Trim(p, "/")] = true
	}
	return t, nil
}

func (s stack) close() {
	for _, t := range s {
		t.dir.Close()
	}
}

// describe lists what the mend holds, parents first.
func (s stack) describe() (list []mended, err error) {
	wanted := map[string]string{} // by path: the directory to be like
	for _, t := range s {
		for p := range t.implied {
			if model, above := s.model(p); above != "" && !alike(model, above) {
				wanted[p] = model
			}
		}
	}
	for p := range wanted {
		for parent := filepath.Dir(p); parent != "."; parent = filepath.Dir(parent) {
			if wanted[parent] == "" {
				wanted[parent], _ = s.model(parent) // it stands in the mend too, so it must not hide anything either
			}
		}
	}
	for p, model := range wanted {
		m, err := describeDir(p, model)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	sortMended(list)
	return list, nil
}

// sortMended puts parents first.
func sortMended(list []mended) {
	slices.SortFunc(list, func(a, b mended) int { return strings.Compare(a.Path, b.Path) })
}

// model finds the directory whose owner and mode the path p of the merged tree should have: the highest that has an
// entry of its own, or else the highest. If that one is hidden, above is the directory that overlayfs shows instead.
func (s stack) model(p string) (model, above string) {
	highest := ""
	for _, t := range s {
		dir, ends := t.look(p)
		if dir != "" && !t.implied[p] {
			return dir, highest
		}
		highest = first(highest, dir)
		if ends {
			break
		}
	}
	return highest, ""
}

// hiddenLinks lists the implied directories that stand where a lower layer has a symbolic link. The directory hides it, as it
// does with the overlay snapshotters of containerd (archive.Apply makes the parent in the upper directory), Docker and
// CRI-O: an image shows the same files here as there. Builders that unpack on top of the lower layers follow the link,
// and whose image was meant so is surprised everywhere; hence the word in the log.
func (s stack) hiddenLinks() (list []string) {
	for i, t := range s {
		for p := range t.implied {
			for _, lower := range s[i+1:] {
				above := lower.fs
				if dir := filepath.Dir(p); dir != "." {
					above, _ = lower.look(dir) // through no link: it would lead to this machine's own files, or to an automounter
				}
				info, err := os.Lstat(filepath.Join(above, filepath.Base(p)))
				if above == "" || err != nil {
					continue
				}
				if info.Mode().Type() == os.ModeSymlink {
					list = append(list, p)
				}
				break
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// alike reports whether nobody could tell one directory from the other, but for the time.
func alike(a, b string) bool {
	x, errX := describeDir("", a)
	y, errY := describeDir("", b)
	x.ModifiedAt, y.ModifiedAt = 0, 0
	return errX == nil && errY == nil && reflect.DeepEqual(x, y)
}

// look returns the directory p of one layer, if it has it, and whether the layer hides what lower ones have there: by a
// file or whiteout on the way, or by an opaque directory.
func (t tree) look(p string) (dir string, ends bool) {
	dir = t.fs
	for name := range strings.SplitSeq(p, "/") {
		dir = filepath.Join(dir, name)
		info, err := os.Lstat(dir)
		if err != nil {
			return "", ends
		}
		if !info.IsDir() {
			return "", true
		}
		var value [8]byte
		n, _ := unix.Lgetxattr(dir, "trusted.overlay.opaque", value[:])
		ends = ends || n == 1 && value[0] == 'y'
	}
	return dir, ends
}

func describeDir(p, model string) (mended, error) {
	var st unix.Stat_t
	if err := unix.Lstat(model, &st); err != nil {
		return mended{}, fmt.Errorf("cannot read directory %s: %w", model, err)
	}
	m := mended{Path: p, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, ModifiedAt: st.Mtim.Nano()}
	names := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Llistxattr(model, names)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return m, nil
		}
		return m, fmt.Errorf("cannot read the attributes of %s: %w", model, err)
	}
	for name := range bytes.SplitSeq(bytes.Trim(names[:n], "\x00"), []byte{0}) {
		if len(name) == 0 || bytes.HasPrefix(name, []byte("trusted.overlay.")) {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		size, err := unix.Lgetxattr(model, string(name), value)
		if err != nil {
			return m, fmt.Errorf("cannot read attribute %s of %s: %w", name, model, err)
		}
		if m.Xattrs == nil {
			m.Xattrs = map[string][]byte{}
		}
		m.Xattrs[string(name)] = value[:size]
	}
	return m, nil
}

func makeMend(dir string, id digest.Digest, list []mended) error {
	root := filepath.Join(dir, "fs")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	for _, m := range list {
		if err := m.make(filepath.Join(root, m.Path)); err != nil {
			return fmt.Errorf("cannot mend directory %s: %w", m.Path, err)
		}
	}
	for _, m := range slices.Backward(list) { // last, since entries that come later change a directory's time
		ts := unix.NsecToTimespec(m.ModifiedAt)
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(root, m.Path), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	text, err := seal(layerRecord{DiffID: id, Inodes: int64(len(list)) + 1, Mend: true})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "layer.json"), text, 0o600)
}

func (m mended) make(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	for name, value := range m.Xattrs {
		if err := unix.Lsetxattr(path, name, value, 0); err != nil {
			return err
		}
	}
	if err := os.Lchown(path, int(m.UID), int(m.GID)); err != nil {
		return err
	}
	return unix.Chmod(path, m.Mode) // after chown, which clears set-id bits
}
