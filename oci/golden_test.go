package oci

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	cdi "tags.cncf.io/container-device-interface/specs-go"
)

var update = flag.Bool("update", false, "write the golden files anew")

// A scene is an Input as testdata keeps it. What it leaves out is an ordinary pod on an ordinary cgroup v2 machine.
type scene struct {
	Container, Pod json.RawMessage
	Image          ocispec.ImageConfig
	Passwd, Group  string
	Namespaces     map[specs.LinuxNamespaceType]string
	Mounts         []specs.Mount
	HostPaths      map[string]string
	ImageVolumes   map[string]string
	Devices        []Device
	CDI            []cdi.ContainerEdits
	Host           Host
	Seccomp        map[string]string // local profiles by path
	AppArmor       []string          // loaded profiles
}

func ordinary() scene {
	return scene{
		Namespaces: map[specs.LinuxNamespaceType]string{
			specs.NetworkNamespace: "/run/evenkeel/pods/pod-1/ns/net",
			specs.IPCNamespace:     "/run/evenkeel/pods/pod-1/ns/ipc",
			specs.UTSNamespace:     "/run/evenkeel/pods/pod-1/ns/uts",
		},
		Host: Host{CgroupV2: true, Seccomp: true, Swap: true, Hugetlb: true, OOMScoreFloor: -1000, RecursiveReadOnly: true},
	}
}

func (s scene) input(t testing.TB) Input {
	t.Helper()
	in := Input{
		ID: "container-1", PodID: "pod-1", Container: &cri.ContainerConfig{}, Pod: &cri.PodSandboxConfig{},
		Image: s.Image, Rootfs: "/run/evenkeel/containers/container-1/rootfs", Cgroup: "/kubepods/pod1/container-1",
		Namespaces: s.Namespaces, Mounts: s.Mounts, HostPaths: s.HostPaths, ImageVolumes: s.ImageVolumes, Devices: s.Devices, CDI: s.CDI, Host: s.Host,
	}
	if len(s.Container) > 0 {
		must(t, protojson.Unmarshal(s.Container, in.Container))
	}
	if len(s.Pod) > 0 {
		must(t, protojson.Unmarshal(s.Pod, in.Pod))
	}
	if s.Seccomp != nil {
		in.Host.LocalhostSeccomp = func(path string) ([]byte, error) {
			if text, ok := s.Seccomp[path]; ok {
				return []byte(text), nil
			}
			return nil, &os.PathError{Op: "open", Path: path, Err: os.ErrNotExist}
		}
	}
	if s.AppArmor != nil {
		in.Host.AppArmorLoaded = func(name string) (bool, error) { return slices.Contains(s.AppArmor, name), nil }
	}
	return in
}

// decide is what the caller of this package does: the user first, then the document.
func (s scene) decide(t testing.TB) (Input, *specs.Spec, error) {
	in := s.input(t)
	user, err := ResolveUser(in.Container.GetLinux().GetSecurityContext(), in.Image.User, []byte(s.Passwd), []byte(s.Group))
	if err != nil {
		return in, nil, err
	}
	in.User = user
	spec, err := ContainerSpec(in)
	return in, spec, err
}

func readScene(t testing.TB, file string) scene {
	t.Helper()
	data, err := os.ReadFile(file)
	must(t, err)
	s := ordinary()
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields() // a misspelt key would test nothing
	if err := decoder.Decode(&s); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return s
}

func scenes(t testing.TB) []string {
	all, err := filepath.Glob("testdata/*.json")
	must(t, err)
	return slices.DeleteFunc(all, func(f string) bool { return strings.HasSuffix(f, ".golden.json") })
}

// TestGolden compares the whole decision for every scene in testdata. After a change that is meant, run
// `go test ./oci -run TestGolden -update` and read the difference.
func TestGolden(t *testing.T) {
	files := scenes(t)
	if len(files) < 20 {
		t.Fatalf("only %d scenes in testdata", len(files))
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			in, spec, err := readScene(t, file).decide(t)
			must(t, err)
			compareGolden(t, strings.TrimSuffix(file, ".json")+".golden.json", goldenText(t, in, spec))
		})
	}
}

func goldenText(t testing.TB, in Input, spec *specs.Spec) []byte {
	t.Helper()
	shown := struct {
		User    User
		Clamps  []string `json:",omitempty"`
		Spec    specs.Spec
		Seccomp any `json:",omitempty"`
	}{User: in.User, Clamps: Clamps(in), Spec: *spec}
	linux := *spec.Linux
	shown.Seccomp, linux.Seccomp = seccompSummary(linux.Seccomp), nil
	shown.Spec.Linux = &linux
	text, err := json.MarshalIndent(shown, "", "  ")
	must(t, err)
	return append(text, '\n')
}

// seccompSummary keeps a small profile whole. The default profile depends on architecture and kernel in its details, so
// of a large one only the calls that decide security are shown.
func seccompSummary(filter *specs.LinuxSeccomp) any {
	if filter == nil {
		return nil
	}
	if len(filter.Syscalls) < 5 {
		return filter
	}
	allows := map[string]bool{}
	for _, call := range []string{"bpf", "chmod", "chroot", "io_uring_setup", "kexec_load", "mount", "open_by_handle_at", "ptrace", "read", "reboot", "sethostname", "setns", "unshare"} {
		allows[call] = slices.ContainsFunc(filter.Syscalls, func(rule specs.LinuxSyscall) bool {
			return rule.Action == specs.ActAllow && len(rule.Args) == 0 && slices.Contains(rule.Names, call)
		})
	}
	return map[string]any{"defaultAction": filter.DefaultAction, "allows": allows}
}

func compareGolden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		must(t, os.WriteFile(file, got, 0o644))
		return
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("the decision differs from %s:\n%s", file, difference(string(want), string(got)))
	}
}

// difference shows the first lines that differ, which is where a reader starts.
func difference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		var before, after string
		if i < len(w) {
			before = w[i]
		}
		if i < len(g) {
			after = g[i]
		}
		if before != after {
			return fmt.Sprintf("line %d\n  want %s\n  got  %s", i+1, before, after)
		}
	}
	return ""
}

// TestGoldenIsStable guards against an order that comes from a map.
func TestGoldenIsStable(t *testing.T) {
	for _, file := range scenes(t) {
		s := readScene(t, file)
		in, spec, err := s.decide(t)
		must(t, err)
		first := goldenText(t, in, spec)
		for range 5 {
			in, spec, err := s.decide(t)
			must(t, err)
			if again := goldenText(t, in, spec); !bytes.Equal(first, again) {
				t.Fatalf("%s: the same input gave two documents: %s", file, difference(string(first), string(again)))
			}
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
