package leftovers

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const shimProgram = "evenkeel-shim"

// process is one entry of /proc as far as it can be read; it may end at any moment.
type process struct {
	pid      int
	args     []string
	exe, cwd string
}

func (s *search) processes() error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("cannot list processes: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		errs = append(errs, s.process(readProcess(pid)))
	}
	return errors.Join(errs...)
}

func readProcess(pid int) process {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	p := process{pid: pid}
	if data, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil {
		for arg := range bytes.SplitSeq(bytes.TrimRight(data, "\x00"), []byte{0}) {
			p.args = append(p.args, string(arg))
		}
	}
	// Links of kernel threads and zombies cannot be read, and say nothing then.
	p.exe, _ = os.Readlink(filepath.Join(dir, "exe"))
	p.cwd, _ = os.Readlink(filepath.Join(dir, "cwd"))
	return p
}

// process decides whether a process is ours, and whether somebody known owns it.
func (s *search) process(p process) error {
	mine, why := s.isShim(p), "a shim working for "+p.cwd
	if mine {
		owned := s.owned(p.cwd + " " + strings.Join(p.args, " "))
		if !owned {
			s.add(Process, strconv.Itoa(p.pid), "%s: %s", why, p.line())
		}
		return s.descriptors(p.pid, owned)
	}
	if why = s.runtimeCall(p); why != "" && !s.owned(strings.Join(p.args, " ")) {
		s.add(Process, strconv.Itoa(p.pid), "%s: %s", why, p.line())
	} else if group := s.inCgroup[p.pid]; why == "" && group != "" {
		s.add(Process, strconv.Itoa(p.pid), "in cgroup %s: %s", group, p.line())
	}
	return nil
}

// isShim: the program may have been replaced by an upgrade, and the directory removed under it; the kernel says both with
// a " (deleted)" behind the name.
func (s *search) isShim(p process) bool {
	program := ""
	if len(p.args) > 0 {
		program = filepath.Base(p.args[0])
	}
	if program != shimProgram && filepath.Base(strings.TrimSuffix(p.exe, " (deleted)")) != shimProgram {
		return false
	}
	_, at := s.ours(strings.TrimSuffix(p.cwd, " (deleted)"))
	return at || s.named(p.args)
}

func (s *search) named(args []string) bool {
	for _, arg := range args {
		_, value, _ := strings.Cut(arg, "=")
		if s.inState(arg) || s.inState(value) {
			return true
		}
	}
	return false
}

func (s *search) inState(name string) bool {
	_, ok := below(name, s.State)
	return ok
}

// runtimeCall recognises an OCI runtime by its --root below the state directory. The daemon has an option of that name
// too, for another directory.
func (s *search) runtimeCall(p process) string {
	for i, arg := range p.args {
		root, ok := strings.CutPrefix(arg, "--root=")
		if !ok && arg == "--root" && i+1 < len(p.args) {
			root = p.args[i+1]
		}
		if s.inState(root) {
			return "an OCI runtime with --root " + root
		}
	}
	return ""
}

// line is the command line, shortened for a human.
func (p process) line() string {
	text := strings.Join(p.args, " ")
	if text == "" {
		text = "(no command line, so a zombie)"
	}
	if len(text) > 200 {
		text = text[:200] + "…"
	}
	return text
}

// descriptors looks at the files a shim holds open. Of a shim that belongs to a pod only those count that serve nobody: files
// that are deleted, which nobody can read any more, and files of containers that are gone.
func (s *search) descriptors(pid int, owned bool) error {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil && !strings.Contains(err.Error(), "no such process") {
		return fmt.Errorf("cannot list the descriptors of process %d: %w", pid, err)
	}
	for _, entry := range entries {
		link := filepath.Join(dir, entry.Name())
		file, err := os.Readlink(link)
		if err != nil || !filepath.IsAbs(file) || kernels(file) {
			continue // a socket or pipe, or one of the kernel's
		}
		if info, err := os.Stat(link); err != nil || !info.Mode().IsRegular() {
			continue
		}
		if reason := s.uselessFile(file, owned); reason != "" {
			s.add(Descriptor, link, "%s, %s", file, reason)
		}
	}
	return nil
}

// kernels reports whether a file is the kernel's and no log. Go's own runtime keeps its cgroup's CPU limit open, below /sys.
func kernels(file string) bool {
	for _, prefix := range []string{"/proc/", "/sys/", "/dev/", "/memfd:"} {
		if strings.HasPrefix(file, prefix) {
			return true
		}
	}
	return false
}

func (s *search) uselessFile(file string, shimOwned bool) string {
	_, inside := s.ours(file)
	switch {
	case !shimOwned:
		return "held by a shim that belongs to nobody"
	case strings.HasSuffix(file, " (deleted)"):
		return "which nobody can read any more"
	case inside && idShape.MatchString(file) && !s.owned(file):
		return "of an object that is gone"
	}
	return ""
}
