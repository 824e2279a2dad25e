// Package artefact keeps what a test machine boots from: Debian's kernel, its modules, and a root file system made of
// packages. Each set stands in a directory named after a hash of all that it was made from, and is made once.
package artefact

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"

	"github.com/evenkeel/evenkeel/integration/vm/cpio"
	"github.com/evenkeel/evenkeel/integration/vm/debian"
	"github.com/evenkeel/evenkeel/integration/vm/kernel"
)

// A Set is the unchanging part of a machine.
type Set struct {
	Dir string
}

func (s Set) Kernel() string   { return filepath.Join(s.Dir, "vmlinuz") }
func (s Set) Modules() string  { return filepath.Join(s.Dir, "modules.cpio") }
func (s Set) Root() string     { return filepath.Join(s.Dir, "root.cpio") }
func (s Set) Packages() string { return filepath.Join(s.Dir, "packages") } // a line for each: hash and file name

// Release of the kernel.
func (s Set) Release() string {
	data, _ := os.ReadFile(filepath.Join(s.Dir, "release"))
	return strings.TrimSpace(string(data))
}

// recipe is raised when the code below makes something else from the same packages.
const recipe = "5"

const kernelPrefix = "linux-image-6.12."

// kernelName is Debian's plain kernel, neither real-time nor cloud nor with other page sizes.
func kernelName(arch string) *regexp.Regexp {
	return regexp.MustCompile(`^linux-image-6\.12\.[0-9]+\+deb12-` + arch + `-unsigned$`)
}

// Get returns the set for an architecture with these packages in its root. It is made when it is not there, or when
// refresh asks for the newest packages.
func Get(ctx context.Context, cache, arch string, packages []string, refresh bool) (Set, error) {
	cache, err := filepath.Abs(cache) // apt's directories are
	if err != nil {
		return Set{}, err
	}
	name := sha256.New()
	fmt.Fprintln(name, recipe, arch, debian.Sources, kernelName(arch), kernel.Wanted, packages)
	s := Set{Dir: filepath.Join(cache, arch+"-"+hex.EncodeToString(name.Sum(nil)[:6]))}
	if _, err := os.Stat(s.Packages()); err == nil && !refresh {
		return s, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return s, err
	}
	tmp, err := os.MkdirTemp(cache, ".new-")
	if err != nil {
		return s, err
	}
	defer os.RemoveAll(tmp)
	if err := build(ctx, tmp, arch, packages); err != nil {
		return s, fmt.Errorf("cannot make the machine's root for %s: %w", arch, err)
	}
	// Two runs may have made the same at the same time: the last one stays.
	return s, errors.Join(os.RemoveAll(s.Dir), os.Rename(filepath.Join(tmp, "set"), s.Dir))
}

func build(ctx context.Context, tmp, arch string, packages []string) error {
	s := Set{Dir: filepath.Join(tmp, "set")}
	if err := os.Mkdir(s.Dir, 0o755); err != nil {
		return err
	}
	a, err := debian.Open(ctx, filepath.Join(tmp, "apt"), arch)
	if err != nil {
		return err
	}
	name, err := a.Newest(ctx, kernelPrefix, kernelName(arch))
	if err != nil {
		return err
	}
	linux, err := a.Fetch(ctx, name)
	if err != nil {
		return err
	}
	debs, err := a.FetchAll(ctx, packages...)
	if err != nil {
		return err
	}
	if err := s.writeKernel(ctx, linux); err != nil {
		return err
	}
	if err := toFile(s.Root(), func(w *cpio.Writer) error { return root(ctx, w, debs) }); err != nil {
		return err
	}
	return s.writePackages(append(debs, linux))
}

func (s Set) writeKernel(ctx context.Context, deb string) error {
	k, err := kernel.Read(ctx, deb)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.Kernel(), k.Image, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "release"), []byte(k.Release+"\n"), 0o644); err != nil {
		return err
	}
	return toFile(s.Modules(), func(w *cpio.Writer) error {
		var order []string
		for _, m := range k.Modules {
			w.Add(cpio.Entry{Name: "modules/" + m.Name + ".ko", Mode: cpio.Regular | 0o644, Size: int64(len(m.Data))}, bytes.NewReader(m.Data))
			order = append(order, m.Name)
		}
		w.Bytes("modules/order", 0o644, strings.Join(order, "\n")+"\n")
		return nil
	})
}

func (s Set) writePackages(debs []string) error {
	var lines []string
	for _, deb := range debs {
		data, err := os.ReadFile(deb)
		if err != nil {
			return err
		}
		lines = append(lines, fmt.Sprintf("%x  %s\n", sha256.Sum256(data), filepath.Base(deb)))
	}
	sort.Strings(lines)
	return os.WriteFile(s.Packages(), []byte(strings.Join(lines, "")), 0o644)
}

// toFile writes one archive into a file.
func toFile(path string, fill func(*cpio.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buffer := bufio.NewWriterSize(f, 1<<20)
	w := cpio.NewWriter(buffer)
	if err := fill(w); err != nil {
		return err
	}
	return errors.Join(w.Close(), buffer.Flush(), f.Close())
}

// merged are the directories that Debian links into /usr. Packages of its release 12 still name both.
var merged = map[string]bool{"bin": true, "sbin": true, "lib": true, "lib64": true}

// unwanted is what no test reads. There is no Perl, which debconf is written in, and no program that converts character sets.
var unwanted = []string{"usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/lintian/", "usr/share/info/", "usr/share/perl5/",
	"usr/share/debconf/", "usr/lib/x86_64-linux-gnu/gconv/", "usr/lib/aarch64-linux-gnu/gconv/"}

// emulators are all from one package; emulator is that of the platform which tests run images of.
const (
	emulators = "usr/bin/qemu-"
	emulator  = emulators + "riscv64-static"
)

// root unpacks packages and does what their installation scripts would have done that matters here.
func root(ctx context.Context, w *cpio.Writer, debs []string) error {
	for dir := range merged {
		w.Directory("usr/"+dir, 0o755)
		w.Link(dir, "usr/"+dir)
	}
	for _, deb := range debs {
		err := debian.Each(ctx, deb, func(name string, h *tar.Header, r io.Reader) error {
			if name = strings.Trim(name, "/"); wanted(name) {
				w.Tar(inUsr(name), h, r)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	finish(w)
	return nil
}

func wanted(name string) bool {
	for _, prefix := range unwanted {
		if strings.HasPrefix(name+"/", prefix) {
			return false
		}
	}
	if strings.HasPrefix(name, emulators) {
		return name == emulator
	}
	return name != "" && name != "."
}

// inUsr is where a file of an unmerged directory belongs.
func inUsr(name string) string {
	if first, _, _ := strings.Cut(name, "/"); merged[first] {
		return "usr/" + name
	}
	return name
}

// finish adds what a Debian machine has from no package, or from installation scripts.
func finish(w *cpio.Writer) {
	for _, dir := range []string{"proc", "sys", "dev", "run", "var/lib", "var/log", "mnt", "opt"} {
		w.Directory(dir, 0o755)
	}
	w.Directory("tmp", 0o1777)
	w.Directory("root", 0o700)
	w.Link("var/run", "/run")
	w.CharDevice("dev/console", 0o600, 5, 1) // the first process is started with it open
	w.CharDevice("dev/null", 0o666, 1, 3)
	for _, program := range []string{"iptables", "ip6tables", "iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore"} {
		w.Link("usr/sbin/"+program, "xtables-nft-multi") // update-alternatives does this
	}
	w.Link("usr/bin/sh", "busybox") // dash is essential, so nothing depends on it
	w.Link("usr/sbin/ip", "../bin/busybox")
	w.Bytes("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n")
	w.Bytes("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n")
	w.Bytes("etc/hosts", 0o644, "127.0.0.1 localhost evenkeel-vm\n::1 localhost\n")
	w.Bytes("etc/resolv.conf", 0o644, "nameserver 10.0.2.3\n") // of qemu's user network, where there is one
	w.Bytes("etc/ld.so.conf", 0o644, "/usr/local/lib\n/usr/lib\n/usr/lib/x86_64-linux-gnu\n/usr/lib/aarch64-linux-gnu\n")
}
