package hostpath

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Help is the helper: it does what args say and prints the answer. It may never return.
func Help(args []string, out io.Writer) error {
	var r reply
	answer, err := help(args)
	if err == nil {
		r.Answer, err = json.Marshal(answer)
	}
	if err != nil {
		r = reply{Error: err.Error()}
		errors.As(err, &r.Errno)
	}
	return json.NewEncoder(out).Encode(r)
}

func help(args []string) (any, error) {
	if len(args) < 2 {
		return nil, errors.New("usage: hostpath resolve|make|read|create|devices|relabel PATH [LABEL]")
	}
	verb, path := args[0], args[1]
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%s is not an absolute path", path)
	}
	switch {
	case verb == "resolve":
		return resolve(path)
	case verb == "make":
		return makeDirectory(path)
	case verb == "read":
		return read(path)
	case verb == "create":
		return struct{}{}, create(path, os.Stdin)
	case verb == "devices":
		return devices(path)
	case verb == "relabel" && len(args) == 3:
		return struct{}{}, relabel(path, args[2])
	}
	return nil, fmt.Errorf("unknown request %q", args)
}

// resolve asks for the attributes too, since a descriptor alone can be had of a file system that is gone.
func resolve(path string) (Path, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil { // also makes an automounter mount
		return Path{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return Path{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	p, err := describe(fd, 0)
	if err != nil {
		return Path{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	p.Mount, err = mountOf(fd)
	return p, err
}

func makeDirectory(path string) (Path, error) {
	p, err := resolve(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return p, err
	}
	if _, err := os.Lstat(path); err == nil {
		target, _ := os.Readlink(path)
		return Path{}, &os.PathError{Op: "follow", Path: path, Err: fmt.Errorf("it links to %s: %w", target, syscall.ENOENT)}
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return Path{}, err
	}
	return resolve(path)
}

// devices stays on one mount: what is mounted below a directory of devices has none, and may never answer.
func devices(path string) ([]Node, error) {
	source, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	nodes := []Node{}
	err = filepath.WalkDir(source, func(name string, entry fs.DirEntry, err error) error {
		if name != source && err != nil {
			return nil // devices come and go while we look
		}
		if err != nil || entry.IsDir() {
			if name != source && mountedOn(name) {
				return filepath.SkipDir
			}
			return err
		}
		if n, ok := nodeAt(name); ok {
			n.Path = path + strings.TrimPrefix(name, source)
			nodes = append(nodes, n)
		}
		return nil
	})
	return nodes, err
}

// mountedOn asks the way to a directory, not the directory.
func mountedOn(dir string) bool {
	parent, err := unix.Open(filepath.Dir(dir), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(parent)
	fd, err := unix.Openat2(parent, filepath.Base(dir), &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_XDEV})
	if err == nil {
		unix.Close(fd)
	}
	return errors.Is(err, unix.EXDEV)
}

func nodeAt(path string) (Node, bool) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Node{}, false
	}
	kind := map[uint32]string{unix.S_IFBLK: "b", unix.S_IFCHR: "c"}[st.Mode&unix.S_IFMT]
	return Node{
		Path: path, Kind: kind, Major: unix.Major(uint64(st.Rdev)), Minor: unix.Minor(uint64(st.Rdev)),
		Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
	}, kind != ""
}

const labelAttribute = "security.selinux"

// relabel leaves alone what cannot hold a label: the file system says so once, at the top. What vanishes meanwhile needs none.
func relabel(path, label string) error {
	return filepath.WalkDir(path, func(name string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = SetLabel(name, label)
		}
		switch {
		case name == path && errors.Is(err, unix.ENOTSUP):
			return filepath.SkipAll
		case name != path && errors.Is(err, fs.ErrNotExist):
			return nil
		}
		return err
	})
}

// SetLabel gives one file an SELinux label, and follows no link. It asks the file system here and now: for what is the engine's own.
// It writes only where something changes, since on shared storage a write costs everybody's caches. ENOTSUP: the file system
// gives its files the label that it was mounted with, or none.
func SetLabel(name, label string) error {
	have := make([]byte, 256)
	if n, err := unix.Lgetxattr(name, labelAttribute, have); err == nil && strings.TrimRight(string(have[:n]), "\x00") == label {
		return nil
	}
	if err := unix.Lsetxattr(name, labelAttribute, []byte(label), 0); err != nil {
		return &os.PathError{Op: "relabel", Path: name, Err: err}
	}
	return nil
}
