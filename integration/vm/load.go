package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/evenkeel/evenkeel/integration/vm/artefact"
	"github.com/evenkeel/evenkeel/integration/vm/cpio"
	"github.com/evenkeel/evenkeel/integration/vm/job"
	"github.com/evenkeel/evenkeel/integration/vm/machine"
)

// bare are the packages of the bare machine: what the engine and tests call by name, and what CNI plugins do.
var bare = []string{"busybox-static", "nftables", "iptables", "coreutils", "util-linux", "apparmor", "qemu-user-static"}

// appArmor has the kernel enforce profiles, whatever order of security modules Debian built it with.
const appArmor = "apparmor=1 security=apparmor"

// guestRoot is where the project lies in the guest. Tests find the binaries below it as they do anywhere.
const guestRoot = "/work"

// A load is what one run brings into a machine beside its unchanging part.
type load struct {
	*options
	dir  string // temporary, for what is built
	set  artefact.Set
	fill []func(*cpio.Writer)
}

// prepare fetches or finds the unchanging part, and builds the guest's first process.
func (o *options) prepare(ctx context.Context) (*load, error) {
	set, err := artefact.Get(ctx, o.under(o.cache), o.arch, o.wanted(), o.refresh)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "vm-load-")
	if err != nil {
		return nil, err
	}
	l := &load{options: o, dir: dir, set: set}
	if err := l.program(ctx, "./integration/vm/guest", "init"); err != nil {
		return nil, err
	}
	l.fill = append(l.fill, func(w *cpio.Writer) {
		w.File(guestRoot+"/go.mod", filepath.Join(o.root, "go.mod"))
		w.Tree(guestRoot+"/bin/linux-"+o.arch, filepath.Join(o.root, "bin", "linux-"+o.arch))
	})
	if o.init == job.Systemd {
		l.fill = append(l.fill, l.systemd)
		if err := l.installUnits(); err != nil {
			return nil, err
		}
	}
	if o.selinux {
		if err := l.confine(ctx); err != nil {
			return nil, err
		}
	}
	return l, l.binaries()
}

// wanted are the packages of the machine.
func (o *options) wanted() []string {
	if o.init == job.Systemd {
		return append(slices.Clone(bare), underSystemd...)
	}
	return bare
}

func (l *load) close() { os.RemoveAll(l.dir) }

// binaries looks for what `make` builds.
func (l *load) binaries() error {
	for _, name := range []string{"evenkeel", "evenkeel-shim", "runc", "bridge"} {
		if _, err := os.Stat(filepath.Join(l.root, "bin", "linux-"+l.arch, name)); err != nil {
			return fmt.Errorf("%w: run `make cross ARCH=%s` first", err, l.arch)
		}
	}
	return nil
}

// program builds a command for the guest and puts it there.
func (l *load) program(ctx context.Context, pkg, as string) error {
	file := filepath.Join(l.dir, path.Base(as))
	if err := l.compile(ctx, "build", "-trimpath", "-ldflags", "-s -w", "-o", file, pkg); err != nil {
		return err
	}
	l.fill = append(l.fill, func(w *cpio.Writer) { w.File(as, file) })
	return nil
}

func (l *load) compile(ctx context.Context, args ...string) error {
	c := exec.CommandContext(ctx, "go", args...)
	c.Dir = l.root
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+l.arch)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// step builds the tests of a package and says how the guest runs them.
func (l *load) step(ctx context.Context, pkg string) (job.Step, error) {
	pkg = strings.TrimPrefix(path.Clean(pkg), "./")
	name := strings.ReplaceAll(pkg, "/", "_") + ".test"
	file := filepath.Join(l.dir, name)
	if err := l.compile(ctx, "test", "-c", "-o", file, "./"+pkg); err != nil {
		return job.Step{}, err
	}
	if _, err := os.Stat(file); err != nil {
		return job.Step{}, fmt.Errorf("package %s has no tests", pkg)
	}
	l.fill = append(l.fill, func(w *cpio.Writer) {
		w.File(guestRoot+"/tests/"+name, file)
		w.Directory(guestRoot+"/"+pkg, 0o755)
		if data := filepath.Join(l.root, pkg, "testdata"); isDir(data) {
			w.Tree(guestRoot+"/"+pkg+"/testdata", data)
		}
	})
	argv := []string{guestRoot + "/tests/" + name, "-test.v=test2json", "-test.timeout=" + l.limit.String(), "-test.run=" + l.suite}
	if l.short {
		argv = append(argv, "-test.short")
	}
	if l.long && pkg == "integration" { // whose flag it is
		argv = append(argv, "-long")
	}
	env := append(job.Environment(guestRoot+"/bin/linux-"+l.arch), l.env...)
	return job.Step{Name: pkg, Argv: argv, Dir: guestRoot + "/" + pkg, Env: append(env, fmt.Sprintf("EVENKEEL_TEST_SLOWDOWN=%g", l.slowdown))}, nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// machine writes the initramfs for a job and returns the machine that boots it.
func (l *load) machine(j job.Job) (*machine.Machine, error) {
	j.Now = time.Now()
	more := appArmor
	if l.selinux {
		j.Policy, more = guestPolicy, seLinux
	}
	if l.init == job.Systemd {
		j.Init = job.Systemd
		more += " " + systemdArguments
	}
	data, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	initrd := filepath.Join(l.dir, "initrd")
	err = machine.WriteInitrd(initrd, []string{l.set.Modules(), l.set.Root()}, func(w *cpio.Writer) {
		for _, fill := range l.fill {
			fill(w)
		}
		w.Bytes(job.Path, 0o644, string(data))
	})
	return &machine.Machine{Arch: l.arch, Kernel: l.set.Kernel(), Initrd: initrd, Append: more, CPUs: l.cpus, Memory: l.memory}, err
}

// withDisk returns the machine for a job, with an empty disk.
func (l *load) withDisk(ctx context.Context, j job.Job) (*machine.Machine, error) {
	m, err := l.machine(j)
	if err != nil {
		return nil, err
	}
	disk, err := l.scratch(ctx)
	m.Disk = "format=raw,cache=unsafe,file=" + disk // nobody cuts the power of this machine
	return m, err
}

// scratch makes an empty disk for the machine. It goes with the load.
func (l *load) scratch(ctx context.Context) (string, error) {
	return l.scratchFile(), machine.Format(ctx, l.scratchFile(), l.disk<<30)
}

func (l *load) scratchFile() string { return filepath.Join(l.dir, "scratch.img") }
