package oci

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestSELinux: labels at the level of the document. What they do is tested under a policy (integration, TestSELinux).
func TestSELinux(t *testing.T) {
	for name, c := range map[string]struct {
		container, pod string // SELinuxOption in protojson; empty: none
		privileged     bool
		process, mount string
	}{
		"nothing asked":              {process: "system_u:system_r:container_t:s0", mount: "system_u:object_r:container_file_t:s0"},
		"user":                       {container: `{"user":"staff_u"}`, process: "staff_u:system_r:container_t:s0", mount: "staff_u:object_r:container_file_t:s0"},
		"role":                       {container: `{"role":"staff_r"}`, process: "system_u:staff_r:container_t:s0", mount: "system_u:object_r:container_file_t:s0"},
		"type":                       {container: `{"type":"container_kvm_t"}`, process: "system_u:system_r:container_kvm_t:s0", mount: "system_u:object_r:container_file_t:s0"},
		"level alone":                {container: `{"level":"s0:c1,c2"}`, process: "system_u:system_r:container_t:s0:c1,c2", mount: "system_u:object_r:container_file_t:s0:c1,c2"},
		"all four":                   {container: `{"user":"u","role":"r","type":"t","level":"s1"}`, process: "u:r:t:s1", mount: "u:object_r:container_file_t:s1"},
		"the pod's":                  {pod: `{"level":"s0:c3"}`, process: "system_u:system_r:container_t:s0:c3", mount: "system_u:object_r:container_file_t:s0:c3"},
		"the container's, not mixed": {container: `{"type":"spc_t"}`, pod: `{"user":"u","level":"s0:c3"}`, process: "system_u:system_r:spc_t:s0", mount: "system_u:object_r:container_file_t:s0"},
		"empty options of its own":   {container: `{}`, pod: `{"level":"s0:c3"}`, process: "system_u:system_r:container_t:s0", mount: "system_u:object_r:container_file_t:s0"},
		"privileged":                 {container: `{"level":"s0:c1"}`, privileged: true, mount: "system_u:object_r:container_file_t:s0:c1"},
	} {
		s := ordinary()
		s.Container, s.Pod = selinuxRequest(c.container, c.privileged), selinuxRequest(c.pod, c.privileged)
		s.Image.Cmd = []string{"true"}
		for _, on := range []bool{true, false} {
			process, mount := c.process, c.mount
			if s.Host.SELinux = on; !on {
				process, mount = "", "" // the kernel would refuse a label
			}
			_, spec, err := s.decide(t)
			must(t, err)
			if spec.Process.SelinuxLabel != process || spec.Linux.MountLabel != mount {
				t.Errorf("%s, SELinux %v: process %q, mounts %q, want %q and %q", name, on, spec.Process.SelinuxLabel, spec.Linux.MountLabel, process, mount)
			}
			exec, err := ExecProcess(spec, []string{"sh"}, false)
			must(t, err)
			if exec.SelinuxLabel != process {
				t.Errorf("%s, SELinux %v: an exec has label %q, want %q", name, on, exec.SelinuxLabel, process)
			}
			in := s.input(t)
			label, err := MountLabel(in.Host, in.Pod, in.Container)
			must(t, err)
			if label != mount {
				t.Errorf("%s, SELinux %v: the engine mounts with label %q, want %q", name, on, label, mount)
			}
		}
	}
}

// TestMountLabelOfAPod is that of what its containers share.
func TestMountLabelOfAPod(t *testing.T) {
	for options, want := range map[string]string{
		"":                        "system_u:object_r:container_file_t:s0",
		`{"level":"s0:c3"}`:       "system_u:object_r:container_file_t:s0:c3",
		`{"user":"u","type":"t"}`: "u:object_r:container_file_t:s0",
	} {
		pod := &cri.PodSandboxConfig{}
		must(t, protojson.Unmarshal(selinuxRequest(options, false), pod))
		label, err := MountLabel(Host{SELinux: true}, pod, nil)
		if err != nil || label != want {
			t.Errorf("%s: %q, %v, want %q", options, label, err, want)
		}
		if label, err := MountLabel(Host{}, pod, nil); err != nil || label != "" {
			t.Errorf("%s without SELinux: %q, %v", options, label, err)
		}
	}
}

// TestLabelsThatAreNone would end up in mount options, where a quotation mark begins the next one.
func TestLabelsThatAreNone(t *testing.T) {
	for _, level := range []string{`s0",size=1`, "s0 s1", "s0\n", `s0\`} {
		s := ordinary()
		s.Image.Cmd = []string{"true"}
		encoded, err := json.Marshal(level)
		must(t, err)
		s.Container = selinuxRequest(`{"level":`+string(encoded)+`}`, false)
		if _, _, err := s.decide(t); err != nil {
			t.Errorf("%q without SELinux: %v", level, err)
		}
		s.Host.SELinux = true
		if _, _, err := s.decide(t); err == nil || !strings.Contains(err.Error(), "security_context.selinux_options") {
			t.Errorf("%q: %v", level, err)
		}
	}
}

func selinuxRequest(options string, privileged bool) []byte {
	security := `"privileged":false`
	if privileged {
		security = `"privileged":true`
	}
	if options != "" {
		security += `,"selinux_options":` + options
	}
	return []byte(`{"linux":{"security_context":{` + security + `}}}`)
}
