package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/evenkeel/evenkeel/internal/cgroup"
	"github.com/evenkeel/evenkeel/oci"
	"github.com/evenkeel/evenkeel/oci/runc"
)

// DetectHost finds out what this machine lets the engine hand out. It is asked once, at start.
func DetectHost(tree *cgroup.Tree) oci.Host {
	_, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail")
	apparmor := enabled("/sys/module/apparmor/parameters/enabled", "Y")
	return oci.Host{
		AppArmor: apparmor, AppArmorLoaded: appArmorLoaded, SELinux: selinuxKnowsContainers(),
		CgroupV2: tree.V2, Seccomp: err == nil, Hugetlb: tree.HasController("hugetlb"), Swap: limitsSwap(tree),
		OOMScoreFloor: oomScoreFloor(), Capabilities: boundingSet(),
	}
}

// limitsSwap: v1 has memory.memsw only when the kernel was started with swapaccount=1.
func limitsSwap(tree *cgroup.Tree) bool {
	if tree.V2 {
		_, err := os.Stat("/proc/swaps")
		return err == nil
	}
	dir := tree.MemoryDir("any") // a tree names no root
	_, err := os.Stat(filepath.Join(filepath.Dir(dir), "memory.memsw.limit_in_bytes"))
	return dir != "" && err == nil
}

// oomScoreFloor is the lowest oom_score_adj this process may set. Without CAP_SYS_RESOURCE that is its own value
// (kernel, fs/proc/base.c __set_oom_adj).
func oomScoreFloor() int {
	if slices.Contains(boundingSet(), "CAP_SYS_RESOURCE") {
		return -1000
	}
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0
	}
	score, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return score
}

// capabilityNames by number, capability.h of Linux 6.
var capabilityNames = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE
AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)

// boundingSet lists the capabilities this process can hand to a container: CapBnd in proc_pid_status(5).
func boundingSet() []string {
	data, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(data), "\nCapBnd:")
	line, _, _ := strings.Cut(rest, "\n")
	mask, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	if err != nil {
		return nil
	}
	var names []string
	for bit, name := range capabilityNames {
		if mask&(1<<bit) != 0 {
			names = append(names, "CAP_"+name)
		}
	}
	return names
}

// askVersion finds out that the program can be run at all, too.
func (r *Runtime) askVersion(ctx context.Context) error {
	program, spec, err := r.Runc.Version(ctx)
	if err != nil {
		return fmt.Errorf("cannot ask the OCI runtime %s for its version: %w", r.Path, err)
	}
	r.Version = program
	if spec != "" {
		r.SpecVersion = spec
	}
	return nil
}

// ProbeRuntime asks an OCI runtime what it can do. A runtime that has no features command (crun before 1.10) is taken to be
// a plain one of the spec version that it names, or of 1.0.2.
func ProbeRuntime(ctx context.Context, r runc.Runc) (*Runtime, error) {
	runtime := &Runtime{Runc: r, SpecVersion: "1.0.2", Seccomp: true}
	document, err := r.Features(ctx)
	if errors.Is(err, errors.ErrUnsupported) {
		return runtime, runtime.askVersion(ctx)
	} else if err != nil {
		return nil, fmt.Errorf("cannot ask the OCI runtime %s for its features: %w", r.Path, err)
	}
	var f features.Features
	if err := json.Unmarshal(document, &f); err != nil {
		return nil, fmt.Errorf("the OCI runtime %s prints features that are not JSON: %w", r.Path, err)
	}
	if f.OCIVersionMax != "" {
		runtime.SpecVersion = f.OCIVersionMax
	}
	runtime.Version = f.Annotations["org.opencontainers.runc.version"]
	runtime.NoCheckpoint = f.Annotations["org.opencontainers.runc.checkpoint.enabled"] == "false" || f.Annotations["run.oci.crun.checkpoint.enabled"] == "false"
	runtime.RecursiveReadOnly = slices.Contains(f.MountOptions, "rro")
	runtime.UserNamespaces = hasUserNamespaces(f.Linux)
	if f.Linux != nil && f.Linux.Seccomp != nil && f.Linux.Seccomp.Enabled != nil {
		runtime.Seccomp = *f.Linux.Seccomp.Enabled
	}
	return runtime, nil
}
