package integration

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// needAppArmor skips, with the reason, where profiles can be neither loaded nor enforced.
func needAppArmor(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if err != nil || strings.TrimSpace(string(data)) != "Y" {
		t.Skip("AppArmor is not on (/sys/module/apparmor/parameters/enabled); make vm-test")
	}
	if _, err := exec.LookPath("apparmor_parser"); err != nil {
		t.Skip("AppArmor is on, and apparmor_parser is not installed (package apparmor)")
	}
}

// profiled is a container under an AppArmor profile; nil: the request does not say. It may mount, as far as capabilities go.
func profiled(name string, profile *cri.SecurityProfile) *cri.ContainerConfig {
	c := engine.Sleeper(name, busybox)
	c.Linux.SecurityContext.Apparmor = profile
	c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	return c
}

const (
	currentProfile = "cat /proc/self/attr/current"
	tryToMount     = "mount -t tmpfs none /tmp && umount /tmp && echo mounted || echo refused"
)

func TestAppArmor(t *testing.T) {
	needAppArmor(t)
	n := start(t, "builtin")
	cfg := n.Pod("confined")
	pod := n.runPod(cfg)
	const own = "evenkeel-test-local"
	load := exec.Command("apparmor_parser", "--replace", "--skip-cache")
	load.Stdin = strings.NewReader("profile " + own + " flags=(attach_disconnected) {\n file,\n network,\n capability,\n signal,\n ptrace,\n unix,\n mount,\n umount,\n deny /etc/passwd r,\n}\n")
	out, err := load.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { os.WriteFile("/sys/kernel/security/apparmor/.remove", []byte(own), 0) })

	local := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: own}
	for _, c := range []struct {
		name          string
		profile       *cri.SecurityProfile
		current, does string
	}{
		{"unsaid", nil, "evenkeel-default (enforce)", "refused"},
		{"default", &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, "evenkeel-default (enforce)", "refused"},
		{"unconfined", &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, "unconfined", "mounted"},
		{"local", local, own + " (enforce)", "mounted"},
	} {
		id := n.run(pod, cfg, profiled(c.name, c.profile))
		if got := strings.TrimSpace(strings.Trim(n.output(id, "sh", "-c", currentProfile), "\x00\n")); got != c.current {
			t.Errorf("%s: the profile is %q, want %q", c.name, got, c.current)
		}
		if got := n.output(id, "sh", "-c", tryToMount); !strings.Contains(got, c.does) {
			t.Errorf("%s: a mount says %q, want %q", c.name, got, c.does)
		}
		if c.profile == local {
			if got := n.output(id, "sh", "-c", "cat /etc/passwd 2>&1 || true"); !strings.Contains(got, "ermission denied") {
				t.Errorf("the profile that denies a file lets it be read: %q", got)
			}
		}
	}
	missing := profiled("missing", &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "no-such-profile"})
	_, err = n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: missing, SandboxConfig: cfg})
	refused(t, err, codes.InvalidArgument, "no-such-profile", "not loaded")
}

// TestAppArmorProfileComesBack: aa-remove-unknown unloads whatever has no file in /etc.
func TestAppArmorProfileComesBack(t *testing.T) {
	needAppArmor(t)
	n := start(t, "builtin")
	if err := os.WriteFile("/sys/kernel/security/apparmor/.remove", []byte("evenkeel-default"), 0); err != nil {
		t.Fatal(err)
	}
	_, id := n.up("again")
	if got := n.output(id, "sh", "-c", currentProfile); !strings.Contains(got, "evenkeel-default (enforce)") {
		t.Errorf("the profile is %q", got)
	}
}
