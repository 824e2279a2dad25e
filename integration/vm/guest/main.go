// Command guest is the first process of a test machine: it makes the kernel's bare room habitable as a minimal init
// does, runs the steps of the job, tells the host, and turns the power off. It reaps whoever is orphaned to it.
//
// In a machine under systemd it only loads modules and mounts the scratch disk, then becomes systemd; a service runs it
// again, as `guest job`, for the rest.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/integration/vm/job"
)

func main() {
	runtime.LockOSThread() // chroot and mounts are the process's, but say it where it matters
	g := &guest{}
	run, off := g.run, g.off
	if os.Getpid() != 1 {
		run, off = g.serve, g.ask
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		g.tell(job.Event{What: job.Failed, Detail: err.Error()})
	}
	off()
}

// A guest is the machine seen from its first process.
type guest struct {
	job    job.Job
	events *os.File
	output *os.File
}

func (g *guest) run() error {
	if err := leaveRootfs(); err != nil {
		return fmt.Errorf("cannot leave the initial root: %w", err)
	}
	if err := g.readJob(); err != nil {
		return err
	}
	if g.job.Init == job.Systemd {
		return g.becomeSystemd()
	}
	if err := mountAll(kernelMounts); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := enforce(g.job.Policy); err != nil {
		return err
	}
	if err := g.openPorts(); err != nil {
		return err
	}
	if err := settle(g.job.Now); err != nil {
		return err
	}
	if err := scratch(); err != nil {
		return err
	}
	g.tell(job.Event{What: job.Up})
	return g.steps()
}

func (g *guest) readJob() error {
	data, err := os.ReadFile(job.Path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &g.job); err != nil {
		return fmt.Errorf("cannot read the job: %w", err)
	}
	return nil
}

// leaveRootfs makes a bind mount of the initial root the root. The initial root itself is attached to nothing, and
// pivot_root(2), which every container start needs, refuses to replace such a root.
func leaveRootfs() error {
	const at = "/.root"
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/", at, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := unix.Chdir(at); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

type mount struct {
	source, at, fs string
	flags          uintptr
	data           string
}

const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// kernelMounts are what every Linux machine has, whatever its init.
var kernelMounts = []mount{
	{"proc", "/proc", "proc", quiet, ""},
	{"sysfs", "/sys", "sysfs", quiet, ""},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=000"},
	{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, ""},
	{"mqueue", "/dev/mqueue", "mqueue", quiet, ""},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", quiet, "nsdelegate,memory_recursiveprot"},
	{"securityfs", "/sys/kernel/security", "securityfs", quiet, ""},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
}

func mountAll(list []mount) error {
	for _, m := range list {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.at, m.fs, m.flags, m.data); err != nil {
			return fmt.Errorf("cannot mount %s on %s: %w", m.fs, m.at, err)
		}
	}
	return nil
}

// loadModules loads what the host packed, in the order in which it stands in the list.
func loadModules() error {
	list, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		data, err := os.ReadFile("/modules/" + name + ".ko")
		if err != nil {
			return err
		}
		// A processor without the instructions that an accelerated module wants refuses it; its plain twin is loaded as well.
		err = unix.InitModule(data, "")
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("cannot load module %s: %w", name, err)
		}
	}
	return os.RemoveAll("/modules")
}

// openPorts finds the ports by name. The kernel makes them before it starts the first process.
func (g *guest) openPorts() error {
	for name, file := range map[string]**os.File{job.Events: &g.events, job.Output: &g.output} {
		found, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, f := range found {
			data, err := os.ReadFile(f)
			if err != nil {
				return err
			}
			if strings.TrimSpace(string(data)) != name {
				continue
			}
			if *file, err = os.OpenFile("/dev/"+filepath.Base(filepath.Dir(f)), os.O_WRONLY, 0); err != nil {
				return err
			}
		}
		if *file == nil {
			return fmt.Errorf("the machine has no port %s", name)
		}
	}
	return nil
}

const hostname = "evenkeel-vm"

// settle does what is left of a minimal init's work.
func settle(now time.Time) error {
	if err := setClock(now); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return err
	}
	for link, target := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return raise("lo")
}

func setClock(now time.Time) error {
	if !time.Now().Before(now) {
		return nil
	}
	tv := unix.NsecToTimeval(now.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return fmt.Errorf("cannot set the clock: %w", err)
	}
	return nil
}

// raise sets a network interface up.
func raise(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("cannot set %s up: %w", name, err)
	}
	return nil
}

// scratch mounts the first disk, if there is one, where the engine and the tests keep what must survive.
func scratch() error {
	if _, err := os.Stat("/dev/vda"); err != nil {
		return nil
	}
	return mountAll([]mount{{"/dev/vda", "/var/lib", "ext4", unix.MS_NOSUID | unix.MS_NODEV, "prjquota"}})
}

func (g *guest) steps() error {
	for _, s := range g.job.Steps {
		g.tell(job.Event{What: job.Started, Step: s.Name})
		code, err := g.step(s)
		if err != nil {
			return fmt.Errorf("step %s: %w", s.Name, err)
		}
		g.tell(job.Event{What: job.Ended, Step: s.Name, Code: code})
	}
	if g.job.Shell {
		return shell()
	}
	return nil
}

func (g *guest) step(s job.Step) (int, error) {
	fmt.Fprintf(g.output, "%s%s\n", job.Boundary, s.Name)
	null, err := os.Open("/dev/null")
	if err != nil {
		return 0, err
	}
	defer null.Close()
	p, err := os.StartProcess(s.Argv[0], s.Argv, &os.ProcAttr{
		Dir: s.Dir, Env: s.Env, Files: []*os.File{null, g.output, g.output},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, err
	}
	return reapUntil(p.Pid)
}

// shell gives the console to a person. busybox's shell finds its own applets.
func shell() error {
	p, err := os.StartProcess("/bin/busybox", []string{"busybox", "setsid", "-c", "sh", "-l"}, &os.ProcAttr{
		Dir: "/root", Env: job.Environment(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return err
	}
	_, err = reapUntil(p.Pid)
	return err
}

// reapUntil waits for a child and for every orphan that ends before it. Orphans that end later belong to the next
// call or to nobody.
func reapUntil(pid int) (code int, err error) {
	for {
		var status unix.WaitStatus
		ended, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if ended == pid && status.Exited() {
			return status.ExitStatus(), nil
		}
		if ended == pid {
			return 128 + int(status.Signal()), nil
		}
	}
}

func (g *guest) tell(e job.Event) {
	if g.events == nil {
		return
	}
	e.Uptime = uptime()
	data, err := json.Marshal(e)
	if err != nil {
		return
	}
	g.events.Write(append(data, '\n'))
}

func uptime() float64 {
	data, _ := os.ReadFile("/proc/uptime")
	first, _, _ := strings.Cut(string(data), " ")
	seconds, _ := strconv.ParseFloat(first, 64)
	return seconds
}

// off ends everybody, writes what is unwritten and turns the power off.
func (g *guest) off() {
	unix.Kill(-1, unix.SIGKILL)
	unix.Sync()
	unix.Unmount("/var/lib", 0)
	g.tell(job.Event{What: job.Down})
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}
