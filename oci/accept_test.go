package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// These tests hand documents to the real runc and ask from inside whether the kernel did what the request said. They need root,
// a static busybox and runc.

const testParent = "/evenkeel-oci-test"

// onNode is a pod with the node's namespaces, so that nothing has to be pinned; a PID namespace of its own remains.
const onNode = `{"metadata":{"name":"p"},"linux":{"security_context":{"privileged":true,"namespace_options":{"network":"NODE","ipc":"NODE"}}}}`

func runcProgram(t *testing.T) string {
	t.Helper()
	built, err := filepath.Abs(filepath.Join("..", "bin", "linux-"+runtime.GOARCH, "runc"))
	must(t, err)
	if _, err := os.Stat(built); err == nil {
		return built
	}
	found, err := exec.LookPath("runc")
	if err != nil {
		t.Fatalf("no runc at %s or in PATH: run `make build`", built)
	}
	return found
}

// busyboxRoot makes a root file system of one static program.
func busyboxRoot(t *testing.T) string {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("no static busybox (apt-get install busybox-static): %v", err)
	}
	root := filepath.Join(t.TempDir(), "rootfs")
	for _, dir := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "srv", "data"} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755))
	must(t, os.Symlink("busybox", filepath.Join(root, "bin/sh")))
	return root
}

// thisHost is what the machine under the test can do, as the engine would find it.
func thisHost(t *testing.T) Host {
	t.Helper()
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	v2 := err == nil
	score, err := os.ReadFile("/proc/self/oom_score_adj")
	must(t, err)
	floor, err := strconv.Atoi(strings.TrimSpace(string(score)))
	must(t, err)
	host := Host{CgroupV2: v2, Seccomp: true, OOMScoreFloor: floor, RecursiveReadOnly: true, Capabilities: []string{}}
	for number, name := range allCapabilities {
		if set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(number), 0, 0, 0); err == nil && set == 1 {
			host.Capabilities = append(host.Capabilities, name)
		}
	}
	return host
}

// run decides the document and lets runc run it to its end.
func run(t *testing.T, s scene, script string) (string, error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run the tests with sudo make test")
	}
	s.Pod = []byte(onNode)
	s.Namespaces = nil
	s.Image = ocispec.ImageConfig{Entrypoint: []string{"/bin/busybox", "sh", "-c", "PATH=/bin; for c in id grep env pwd cat chmod touch mount ls; do alias $c=\"busybox $c\"; done\n" + script}, WorkingDir: "/srv"}
	in := s.input(t)
	user, err := ResolveUser(in.security(), in.Image.User, []byte(s.Passwd), []byte(s.Group))
	must(t, err)
	id := fmt.Sprintf("oci-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	in.User, in.Rootfs, in.Cgroup = user, busyboxRoot(t), testParent+"/"+id
	spec, err := ContainerSpec(in)
	must(t, err)
	return runBundle(t, id, spec)
}

func runBundle(t *testing.T, id string, spec *specs.Spec) (string, error) {
	t.Helper()
	bundle, state := t.TempDir(), t.TempDir()
	document, err := json.Marshal(spec)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(bundle, "config.json"), document, 0o600))
	program := runcProgram(t)
	t.Cleanup(func() {
		_ = exec.Command(program, "--root", state, "delete", "--force", id).Run()
		removeCgroups(t, testParent)
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, program, "--root", state, "run", "--bundle", bundle, id)
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	err = command.Run()
	return output.String(), err
}

// removeCgroups removes the empty parent that runc leaves behind, in every hierarchy.
func removeCgroups(t *testing.T, name string) {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup" + name, "/sys/fs/cgroup/*" + name} {
		found, _ := filepath.Glob(pattern)
		for _, dir := range found {
			if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
				t.Errorf("the test's cgroup stays: %v", err)
			}
		}
	}
}

func wants(t *testing.T, output string, err error, parts ...string) {
	t.Helper()
	if err != nil {
		t.Fatalf("runc: %v\n%s", err, output)
	}
	for _, part := range parts {
		if !strings.Contains(output, part) {
			t.Errorf("the output lacks %q:\n%s", part, output)
		}
	}
}

func capMask(names []string) string {
	var mask uint64
	for number, name := range allCapabilities {
		if slices.Contains(names, name) {
			mask |= 1 << number
		}
	}
	return fmt.Sprintf("%016x", mask)
}

func TestRuncUserAndEnvironment(t *testing.T) {
	s := scene{Host: thisHost(t), Passwd: "web:x:1000:1000::/home/web:\n", Group: "media:x:50000:web\n"}
	s.Container = []byte(`{"envs":[{"key":"A","value":"Zj0x"}],"linux":{"security_context":{"run_as_username":"web","supplemental_groups":[4000],"no_new_privs":true,"capabilities":{"drop_capabilities":["ALL"],"add_ambient_capabilities":["NET_BIND_SERVICE"]}}}}`)
	out, err := run(t, s, "id -u; id -g; id -G; env; pwd; grep -E 'Cap|NoNew' /proc/self/status")
	bit := capMask([]string{"CAP_NET_BIND_SERVICE"})
	wants(t, out, err, "1000\n1000\n1000 4000 50000\n", "A=f=1\n", "HOME=/home/web\n", "\n/srv\n", "NoNewPrivs:\t1",
		"CapInh:\t"+bit, "CapPrm:\t"+bit, "CapEff:\t"+bit, "CapBnd:\t"+bit, "CapAmb:\t"+bit)
}

func TestRuncDefaults(t *testing.T) {
	host := thisHost(t)
	out, err := run(t, scene{Host: host}, "grep Cap /proc/self/status; cat /proc/self/oom_score_adj; mount; touch /proc/sysrq-trigger || echo read-only; cat /dev/null && echo null; echo kcore $(cat /proc/kcore | busybox wc -c); touch /root-is-writable && echo wrote")
	mask := capMask(defaultCapabilities)
	wants(t, out, err, "CapBnd:\t"+mask, "CapEff:\t"+mask, "CapInh:\t0000000000000000", "\nnull\n",
		"sysfs on /sys type sysfs (ro,nosuid,nodev,noexec", "mqueue on /dev/mqueue", "on /dev/shm", "\n0\n", "read-only\n", "kcore 0\n", "wrote\n")
}

// Privileged and ALL must give all there is, on a machine whose bounding set lacks some.
func TestRuncPrivileged(t *testing.T) {
	host := thisHost(t)
	s := scene{Host: host, Container: []byte(`{"linux":{"security_context":{"privileged":true}}}`)}
	s.Devices = []Device{{LinuxDevice: specs.LinuxDevice{Path: "/dev/kmsg", Type: "c", Major: 1, Minor: 11}}}
	out, err := run(t, s, "grep -E 'Cap|Seccomp:' /proc/self/status; mount; ls /dev")
	wants(t, out, err, "CapBnd:\t"+capMask(host.Capabilities), "CapEff:\t"+capMask(host.Capabilities), "Seccomp:\t0", "type sysfs (rw", "kmsg")
	if strings.Contains(out, "on /proc/kcore") || strings.Contains(out, "on /sys/firmware") {
		t.Errorf("a privileged container has masked paths:\n%s", out)
	}
}

func TestRuncSeccomp(t *testing.T) {
	host := thisHost(t)
	out, err := run(t, scene{Host: host, Container: []byte(`{"linux":{"security_context":{"seccomp":{"profile_type":"RuntimeDefault"}}}}`)}, "grep Seccomp: /proc/self/status; chmod 700 /tmp && echo changed")
	wants(t, out, err, "Seccomp:\t2", "changed")

	s := scene{Host: host, Container: []byte(`{"linux":{"security_context":{"seccomp":{"profile_type":"Localhost","localhost_ref":"/p"}}}}`)}
	s.Seccomp = map[string]string{"/p": `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod","fchmodat"],"action":"SCMP_ACT_ERRNO"}]}`}
	out, err = run(t, s, "chmod 700 /tmp && echo changed; true")
	wants(t, out, err, "Operation not permitted")
}

func TestRuncMounts(t *testing.T) {
	source := t.TempDir()
	must(t, os.Mkdir(filepath.Join(source, "deep"), 0o755))
	must(t, os.WriteFile(filepath.Join(source, "file"), []byte("here"), 0o644))
	s := scene{Host: thisHost(t), HostPaths: map[string]string{"/link": source}}
	s.Container = []byte(`{"linux":{"security_context":{"readonly_rootfs":true}},"mounts":[
		{"container_path":"/data/deep","host_path":"/link","mount_options":["noexec","nosuid"]},
		{"container_path":"/data","host_path":"/link","readonly":true,"recursive_read_only":true}]}`)
	out, err := run(t, s, "cat /data/file /data/deep/file; mount | grep /data; touch /data/x; touch /data/deep/x && echo wrote; touch /y; true")
	wants(t, out, err, "herehere", "/data/x: Read-only file system", "wrote", "/y: Read-only file system", "noexec", "nosuid")
}

// What the request demands and the engine cannot grant must be refused here, since runc's own words would not say why.
func TestRuncRefusesWhatWeRefuse(t *testing.T) {
	host := thisHost(t)
	if len(host.Capabilities) == len(allCapabilities) {
		t.Log("this machine's bounding set is full, so there is nothing to refuse")
		return
	}
	s := scene{Host: host, Container: []byte(`{"linux":{"security_context":{"capabilities":{"add_capabilities":["ALL"]}}}}`)}
	s.Host.Capabilities = nil // as if the engine did not look
	if out, err := run(t, s, "true"); err == nil {
		t.Errorf("runc granted capabilities outside the bounding set; checkGrantable is not needed any more:\n%s", out)
	} else {
		t.Logf("runc says: %s", strings.TrimSpace(out))
	}
}
