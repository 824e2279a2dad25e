package image

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Program is what a container is to start, as far as it can be told from the image.
type Program struct {
	Name   string   // first element of the command line
	Dir    string   // working directory, for a relative Name with a slash; "": /
	Path   string   // value of PATH, for a Name without one; "": the runtime's default
	Hidden []string // mount points in the container: what lies below them is not the image's and is not examined
}

// CheckExecutable finds out whether this machine can run a program of a mounted root file system: the ELF machine and
// class against what the CPU and kernel execute (binfmt_misc included), the alignment of its segments against the page
// size, and the presence of its loader. A script's #! interpreter is examined in its place, one level deep.
//
// The error says what to do and is ErrPlatform when another build of the image would help. Nil means that nothing is known
// to be wrong: also for a program that is missing, not executable, or of no known format, about which the OCI runtime
// speaks better. Nothing outside rootfs is opened, whatever its links say.
func CheckExecutable(rootfs string, p Program) error {
	return p.check(rootfs, hostExecutes())
}

// executes is what a machine runs.
type executes struct {
	page     int64                       // bytes
	native   elf.Machine                 // 64 bit, little endian
	compat   func(elf.Machine) bool      // 32-bit programs; asked only about the machine's own family
	foreign  func(start []byte) bool     // by an interpreter registered in binfmt_misc
	cpuNames map[elf.Machine]string      // how Go and image indexes call them
	older    map[elf.Machine]elf.Machine // the 32-bit machine of each family
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" // runc's, where the image sets none

// startSize covers an ELF header and what binfmt_misc and #! may look at (BINPRM_BUF_SIZE is 256).
const startSize = 4096

func (p Program) check(rootfs string, host executes) error {
	root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot examine the program in %s: %w", rootfs, err)
	}
	defer unix.Close(root)
	tree := programTree{root: root, hidden: p.Hidden}
	f, name := tree.find(p)
	if f == nil {
		return nil
	}
	defer f.Close()
	interpreter, err := tree.examine(f, name, host)
	if err != nil || interpreter == "" {
		return err
	}
	script, err := tree.open(interpreter)
	if err != nil || script == nil {
		return absent(err, "script %s asks for the interpreter %s, which the image does not have; install it in the image or change the script's first line", name, interpreter)
	}
	defer script.Close()
	_, err = tree.examine(script, interpreter, host)
	return err
}

// absent makes a message of a file's absence; other failures mean that nothing is known.
func absent(err error, format string, args ...any) error {
	if !errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// programTree opens files as a process in the container would see them.
type programTree struct {
	root   int
	hidden []string
}

// find looks a program up as execvpe(3) does. No file: it is not there, or nothing of ours to judge.
func (t programTree) find(p Program) (*os.File, string) {
	dir := path.Clean("/" + p.Dir)
	if strings.Contains(p.Name, "/") {
		name := p.Name
		if !strings.HasPrefix(name, "/") {
			name = dir + "/" + name
		}
		f, _ := t.open(name)
		return f, name
	}
	for _, d := range strings.Split(first(p.Path, defaultPath), ":") {
		if !strings.HasPrefix(d, "/") {
			d = dir + "/" + d
		}
		name := path.Join(d, p.Name)
		f, err := t.open(name)
		if f != nil {
			return f, name
		}
		if errors.Is(err, errHidden) {
			break // a volume may bring the program
		}
	}
	return nil, ""
}

var errHidden = errors.New("below a mount")

// open opens an executable regular file, following links inside the root. It is nil with an error otherwise.
func (t programTree) open(name string) (*os.File, error) {
	if t.hides(path.Clean(name)) {
		return nil, errHidden
	}
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(t.root, strings.TrimPrefix(name, "/"), &how)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0) {
		err = unix.EACCES
	}
	if err == nil && t.hides(t.real(f)) {
		err = errHidden
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// real is where an open file lies, as the container sees it.
func (t programTree) real(f *os.File) string {
	whole, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	root, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", t.root))
	return "/" + strings.TrimPrefix(strings.TrimPrefix(whole, root), "/")
}

func (t programTree) hides(name string) bool {
	return slices.ContainsFunc(t.hidden, func(mount string) bool {
		mount = path.Clean("/" + mount)
		return mount == "/" || name == mount || strings.HasPrefix(name, mount+"/")
	})
}

// examine judges one file. Of a script it returns the interpreter.
func (t programTree) examine(f *os.File, name string, host executes) (interpreter string, err error) {
	start := make([]byte, startSize)
	n, err := io.ReadFull(f, start)
	if err != nil && err != io.ErrUnexpectedEOF {
		return "", nil
	}
	start = start[:n]
	if host.foreign(start) {
		return "", nil
	}
	if line, ok := bytes.CutPrefix(start, []byte("#!")); ok {
		return interpreterOf(line), nil
	}
	if !bytes.HasPrefix(start, []byte(elf.ELFMAG)) {
		return "", nil
	}
	program, err := elf.NewFile(f)
	if err != nil {
		return "", nil // the kernel will say so
	}
	if err := host.machine(name, program.FileHeader); err != nil {
		return "", err
	}
	if err := host.alignment(name, program); err != nil {
		return "", err
	}
	return "", t.loader(name, program)
}

// interpreterOf reads the first word after #! (binfmt_script.c).
func interpreterOf(line []byte) string {
	line, _, _ = bytes.Cut(line, []byte("\n"))
	words := bytes.Fields(line)
	if len(words) == 0 || !bytes.HasPrefix(words[0], []byte("/")) {
		return ""
	}
	return string(words[0])
}

func (host executes) machine(name string, h elf.FileHeader) error {
	if h.Machine == host.native && h.Class == elf.ELFCLASS64 && h.Data == elf.ELFDATA2LSB {
		return nil
	}
	ours := host.cpuNames[host.native]
	if h.Machine == host.older[host.native] && h.Class == elf.ELFCLASS32 && h.Data == elf.ELFDATA2LSB {
		if host.compat(h.Machine) {
			return nil
		}
		return fmt.Errorf("%w: %s is a 32-bit program for %s, and the CPU or kernel of this %s node runs 64-bit programs only; use an image built for linux/%s",
			ErrPlatform, name, host.name(h), ours, ours)
	}
	return fmt.Errorf("%w: %s is a program for %s, and this node is %s; use an image built for linux/%s, or check that the tag is a multi-platform index and not one platform's image, or register an interpreter for %s with binfmt_misc",
		ErrPlatform, name, host.name(h), ours, ours, host.name(h))
}

func (host executes) name(h elf.FileHeader) string {
	name := host.cpuNames[h.Machine]
	if name == "" {
		name = strings.ToLower(strings.TrimPrefix(h.Machine.String(), "EM_"))
	}
	if h.Class == elf.ELFCLASS32 && h.Machine == elf.EM_X86_64 {
		return "x32"
	}
	return name
}

// alignment asks what the kernel's loader needs: each segment's place in memory and in the file agree modulo the page
// size, and no two with different rights share a page (fs/binfmt_elf.c maps whole pages, the later over the earlier).
func (host executes) alignment(name string, program *elf.File) error {
	var end uint64
	var rights elf.ProgFlag
	page := uint64(host.page)
	for _, s := range program.Progs {
		if s.Type != elf.PT_LOAD || s.Memsz == 0 {
			continue
		}
		shares := end > s.Vaddr/page*page && rights != s.Flags
		apart := s.Filesz > 0 && (s.Vaddr-s.Off)%page != 0
		if s.Align < page && (shares || apart) { // a linker that meant pages of this size knew what it did
			return fmt.Errorf("%w: %s is linked for pages of %d KiB at most, and this node's kernel has pages of %d KiB; use an image whose programs are linked with -z max-page-size=%d, or a node with a 4 KiB kernel",
				ErrPlatform, name, max(s.Align, 1024)>>10, page>>10, page)
		}
		end, rights = (s.Vaddr+s.Memsz+page-1)/page*page, s.Flags
	}
	return nil
}

// loader looks for the dynamic loader, whose absence the kernel reports as if the program itself were missing.
func (t programTree) loader(name string, program *elf.File) error {
	for _, s := range program.Progs {
		if s.Type != elf.PT_INTERP || s.Filesz > unix.PathMax {
			continue
		}
		text, err := io.ReadAll(s.Open())
		if err != nil {
			return nil
		}
		loader := string(bytes.TrimRight(text, "\x00"))
		f, err := t.open(loader)
		if f != nil {
			f.Close()
			return nil
		}
		return absent(err, "%s needs the loader %s, which the image does not have: the program was linked against another C library (glibc, musl) than the image's; link it statically or change the base image", name, loader)
	}
	return nil
}

// binfmtDir has a file for each interpreter that the node's administrator registered.
const binfmtDir = "/proc/sys/fs/binfmt_misc"

// registered reports whether binfmt_misc would run a file by its first bytes
// (Documentation/admin-guide/binfmt-misc.rst).
func registered(dir string, start []byte) bool {
	return registeredFor(dir, start, func(string) bool { return true })
}

func binfmtMatches(entry string, start []byte) bool {
	var offset int
	var magic, mask []byte
	for line := range strings.Lines(entry) {
		fmt.Sscanf(line, "offset %d", &offset)
		fmt.Sscanf(line, "magic %x", &magic)
		fmt.Sscanf(line, "mask %x", &mask)
	}
	if len(magic) == 0 || offset < 0 || len(start) < offset+len(magic) {
		return false
	}
	for i, want := range magic {
		got := start[offset+i]
		if i < len(mask) {
			got, want = got&mask[i], want&mask[i]
		}
		if got != want {
			return false
		}
	}
	return true
}
