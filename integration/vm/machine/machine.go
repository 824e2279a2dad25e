// Package machine boots virtual machines under qemu's software emulation, which needs nothing of the machine it runs
// on: no KVM, no root, no network. It talks with the guest's first process through virtio serial ports.
package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/evenkeel/evenkeel/integration/vm/job"
)

// A Machine is what to boot. The zero values of CPUs and Memory mean 2 and 2048.
type Machine struct {
	Arch   string // amd64, arm64
	Kernel string // file
	Initrd string // file
	Disk   string // what qemu's -drive says about the scratch disk; empty: none
	Append string // more of the kernel's command line
	CPUs   int
	Memory int // MiB
	// Console takes what the guest's kernel and first process print.
	Console io.Writer
	// Terminal gives the console to this process's terminal instead.
	Terminal bool
}

// A Running machine. Read Output and Events to their ends: a guest whose host does not listen waits.
type Running struct {
	Output io.Reader // what the steps print
	Events <-chan job.Event

	cmd   *exec.Cmd
	tail  tail   // of the console, readable when ended is closed
	dir   string // of the sockets
	ended chan struct{}
	err   error // of qemu, readable when ended is closed
}

// platform is how qemu names an architecture's machine.
type platform struct {
	program, console, pkg string
	accel                 string
	args                  []string
}

var platforms = map[string]platform{
	// Five-level page tables only make an emulated processor walk further. Instructions of ADX and BMI treat flags in ways of their
	// own, which qemu 7.2 gets wrong now and then: an interrupt returned to flags that no processor has. All processors take turns
	// on one thread: where each has its own, one can still run what another has just patched out of the kernel's code, and dies of
	// an int3 that nobody knows.
	"amd64": {"qemu-system-x86_64", "ttyS0", "qemu-system-x86", "tcg,thread=single", []string{"-M", "q35", "-cpu", "max,la57=off,adx=off,bmi1=off,bmi2=off"}},
	// The architected algorithm of pointer authentication costs a third of the time when it is emulated.
	"arm64": {"qemu-system-aarch64", "ttyAMA0", "qemu-system-arm", "tcg,thread=multi", []string{"-M", "virt", "-cpu", "max,pauth-impdef=on"}},
}

// Start boots the machine. The caller ends with Wait, after Kill if there is no patience left.
func (m *Machine) Start(ctx context.Context) (*Running, error) {
	p, ok := platforms[m.Arch]
	if !ok {
		return nil, fmt.Errorf("no machine for architecture %q", m.Arch)
	}
	if _, err := exec.LookPath(p.program); err != nil {
		return nil, fmt.Errorf("%w: apt-get install --no-install-recommends %s", err, p.pkg)
	}
	dir, err := os.MkdirTemp("", "vm-") // short: a socket's path has 108 bytes at most
	if err != nil {
		return nil, err
	}
	r := &Running{dir: dir, ended: make(chan struct{})}
	events, err := r.listen("events")
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	output, err := r.listen("output")
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	r.cmd = exec.CommandContext(ctx, p.program, append(m.args(p), m.ports(dir)...)...)
	console := m.Console
	if m.Terminal {
		r.cmd.Stdin, console = os.Stdin, os.Stdout
	}
	console = io.MultiWriter(console, &r.tail)
	r.cmd.Stdout, r.cmd.Stderr = console, console
	// A machine must not outlive the run that was killed.
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: !m.Terminal}
	if err := r.start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	r.Output, r.Events = connection(output), decode(connection(events))
	return r, nil
}

// start runs qemu and waits for it on one thread: the parent whose death Pdeathsig speaks of is a thread, and Go ends
// idle ones.
func (r *Running) start() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := r.cmd.Start()
		started <- err
		if err == nil {
			r.err = r.cmd.Wait()
			close(r.ended)
		}
	}()
	return <-started
}

func (m *Machine) args(p platform) []string {
	cpus, memory := m.CPUs, m.Memory
	if cpus == 0 {
		cpus = 2
	}
	if memory == 0 {
		memory = 2048
	}
	// A kernel that panics reboots at once, which -no-reboot turns into the end of qemu. After an Oops nothing that a test says
	// is worth much, and a boot may just stop.
	boot := "console=" + p.console + " panic=-1 oops=panic quiet loglevel=4 mitigations=off " + m.Append
	serial := "stdio"
	if m.Terminal {
		serial = "mon:stdio"
	}
	args := append([]string{"-accel", p.accel}, p.args...)
	args = append(args, "-smp", fmt.Sprint(cpus), "-m", fmt.Sprintf("%dM", memory), "-nodefaults", "-no-user-config", "-no-reboot",
		"-display", "none", "-serial", serial, "-kernel", m.Kernel, "-initrd", m.Initrd, "-append", boot, "-device", "virtio-rng-pci")
	if m.Disk != "" {
		args = append(args, "-drive", "if=none,id=scratch,"+m.Disk, "-device", "virtio-blk-pci,drive=scratch")
	}
	return args
}

func (m *Machine) ports(dir string) []string {
	args := []string{"-device", "virtio-serial-pci"}
	for _, port := range []struct{ id, name string }{{"events", job.Events}, {"output", job.Output}} {
		args = append(args, "-chardev", "socket,id="+port.id+",path="+filepath.Join(dir, port.id),
			"-device", "virtserialport,chardev="+port.id+",name="+port.name)
	}
	return args
}

func (r *Running) listen(name string) (*net.UnixListener, error) {
	return net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(r.dir, name), Net: "unix"})
}

// Kill ends the machine as a power cut does: at once, whatever it was doing.
func (r *Running) Kill() { r.cmd.Process.Kill() }

// Wait returns when the machine is gone. A machine that was killed ends with an error.
func (r *Running) Wait() error {
	<-r.ended
	return errors.Join(r.err, os.RemoveAll(r.dir))
}

// Ended is closed when the machine is gone.
func (r *Running) Ended() <-chan struct{} { return r.ended }

const connectLimit = 30 * time.Second

// connection reads from the one connection that qemu makes. It ends when qemu does.
func connection(l *net.UnixListener) io.Reader {
	r, w := io.Pipe()
	go func() {
		defer l.Close()
		l.SetDeadline(time.Now().Add(connectLimit))
		conn, err := l.Accept()
		if err != nil {
			w.CloseWithError(err)
			return
		}
		defer conn.Close()
		_, err = io.Copy(w, conn)
		w.CloseWithError(err)
	}()
	return r
}

func decode(from io.Reader) <-chan job.Event {
	events := make(chan job.Event, 16)
	go func() {
		defer close(events)
		lines := bufio.NewScanner(from)
		for lines.Scan() {
			var e job.Event
			if json.Unmarshal(lines.Bytes(), &e) == nil { // the last line of a killed machine may be half a line
				events <- e
			}
		}
	}()
	return events
}
