package integration

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/integration/registry"
)

// exits is exit_group(code) in the machine code of an architecture.
func exits(arch string, code uint32) (machine elf.Machine, words []uint32) {
	switch arch {
	case "arm64":
		return elf.EM_AARCH64, []uint32{0xd2800000 | code<<5, 0xd2800008 | 94<<5, 0xd4000001} // movz x0; movz x8; svc 0
	case "arm":
		return elf.EM_ARM, []uint32{0xe3a00000 | code, 0xe3a070f8, 0xef000000} // mov r0; mov r7; svc 0
	case "riscv64":
		return elf.EM_RISCV, []uint32{code<<20 | 10<<7 | 0x13, 94<<20 | 17<<7 | 0x13, 0x73} // li a0; li a7; ecall
	}
	return elf.EM_X86_64, []uint32{0xbf | code<<8, 0xe7b800, 0x050f0000} // mov edi; mov eax; syscall
}

// program is a static ELF file that ends with a code: a program for any architecture without a compiler for it.
func program(arch string, code uint32) []byte {
	const at = 0x100000
	machine, words := exits(arch, code)
	var out bytes.Buffer
	ident := [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)}
	size := uint64(4 * len(words))
	if arch == "arm" {
		ident[4] = byte(elf.ELFCLASS32)
		binary.Write(&out, binary.LittleEndian, elf.Header32{Ident: ident, Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1,
			Entry: at + 84, Phoff: 52, Flags: 5 << 24, Ehsize: 52, Phentsize: 32, Phnum: 1})
		binary.Write(&out, binary.LittleEndian, elf.Prog32{Type: uint32(elf.PT_LOAD), Vaddr: at, Paddr: at, Filesz: 84 + uint32(size), Memsz: 84 + uint32(size),
			Flags: uint32(elf.PF_R | elf.PF_X), Align: 0x10000})
	} else {
		binary.Write(&out, binary.LittleEndian, elf.Header64{Ident: ident, Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1,
			Entry: at + 120, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1})
		binary.Write(&out, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_LOAD), Vaddr: at, Paddr: at, Filesz: 120 + size, Memsz: 120 + size,
			Flags: uint32(elf.PF_R | elf.PF_X), Align: 0x10000})
	}
	binary.Write(&out, binary.LittleEndian, words)
	return out.Bytes()
}

// imageFor has one program, which ends with a code.
func imageFor(t *testing.T, p v1.Platform, code uint32) registry.For {
	t.Helper()
	layer, err := registry.Layer(registry.File{Name: "app", Mode: 0o755, Content: program(p.Architecture, code)})
	must(t, err)
	img, err := registry.ImageFor(p, v1.Config{Entrypoint: []string{"/app"}}, layer)
	must(t, err)
	return registry.For{Platform: p, Image: img}
}

func digestOf(t *testing.T, repository string, f registry.For) string {
	t.Helper()
	digest, err := f.Image.Digest()
	must(t, err)
	return images.Host + "/" + repository + "@" + digest.String()
}

// exitCode runs what the image says.
func (n *node) exitCode(name, ref string) int32 {
	n.t.Helper()
	cfg := n.Pod(name)
	id := n.run(n.runPod(cfg), cfg, engine.Container("main", ref))
	return n.awaitState(id, cri.ContainerState_CONTAINER_EXITED).ExitCode
}

// TestOneTagForEveryMachine: the same tag gives the variant for this machine, whatever the order of the index.
func TestOneTagForEveryMachine(t *testing.T) {
	n := start(t, "builtin")
	arm, amd64 := v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, v1.Platform{OS: "linux", Architecture: "amd64"}
	arm64 := v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	ref, err := images.Push("every", registry.Index(imageFor(t, arm, 7), imageFor(t, arm64, 64), imageFor(t, amd64, 65)))
	must(t, err)
	n.pull(ref)
	if got, want := n.exitCode("every", ref), map[string]int32{"arm64": 64, "amd64": 65}[runtime.GOARCH]; got != want {
		t.Errorf("the variant that ran ended with %d, want %d", got, want)
	}
}

// foreign is a platform that no test runs on and no other test registers an interpreter for.
var foreign = v1.Platform{OS: "linux", Architecture: "riscv64"}

// TestImageOfAnotherPlatform is refused by its digest, with what to do, unless the node can emulate it.
func TestImageOfAnotherPlatform(t *testing.T) {
	n := start(t, "builtin")
	alone := imageFor(t, foreign, 33)
	tag, err := images.Push("emulated", registry.Index(alone))
	must(t, err)
	byDigest := digestOf(t, "emulated", alone)
	pull := func(ref string) error {
		_, err := n.Images.PullImage(n.ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
		return err
	}
	refused(t, pull(byDigest), codes.NotFound, "riscv64", runtime.GOARCH, "binfmt_misc")

	standIn := filepath.Join(n.Base, "emulator")
	must(t, os.WriteFile(standIn, program(runtime.GOARCH, 99), 0o755))
	unregister := emulate(t, n.Bridge, standIn)
	refused(t, pull(tag), codes.NotFound, "riscv64", runtime.GOARCH) // the tag would be another image on each node
	must(t, pull(byDigest))
	if got := n.exitCode("emulated", byDigest); got != 99 {
		t.Errorf("the program ended with %d, want the emulator's 99", got)
	}
	must(t, n.Restart())
	unregister()
	cfg := n.Pod("bereft")
	pod := n.runPod(cfg)
	_, err = n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: engine.Container("main", byDigest), SandboxConfig: cfg})
	refused(t, err, anyCode, "/app", "riscv64", "binfmt_misc", "linux/"+runtime.GOARCH)
}

// TestImageUnderQemu runs a program of another architecture under Debian's qemu-user-static.
func TestImageUnderQemu(t *testing.T) {
	const qemu = "/usr/bin/qemu-riscv64-static"
	if _, err := os.Stat(qemu); err != nil {
		t.Skip("the package qemu-user-static is not installed; TestImageOfAnotherPlatform uses a stand-in")
	}
	n := start(t, "builtin")
	emulate(t, n.Bridge, qemu)
	alone := imageFor(t, foreign, 33)
	_, err := images.Push("qemu", registry.Index(alone))
	must(t, err)
	ref := digestOf(t, "qemu", alone)
	n.pull(ref)
	if got := n.exitCode("qemu", ref); got != 33 {
		t.Errorf("the program ended with %d, want 33", got)
	}
}

// emulate registers an interpreter for the foreign platform's programs under a name of its own. The mount is another
// one of the file system that the machine may have mounted already.
func emulate(t *testing.T, name, interpreter string) (unregister func()) {
	t.Helper()
	const dir = "/proc/sys/fs/binfmt_misc"
	if err := unix.Mount("binfmt_misc", dir, "binfmt_misc", 0, ""); err != nil {
		t.Fatalf("cannot mount binfmt_misc, which the kernel must have (CONFIG_BINFMT_MISC): %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	start := program(foreign.Architecture, 0)[:20]
	magic, mask := escaped(start), escaped(append(bytes.Repeat([]byte{0xff}, 7), append(make([]byte, 9), 0xfe, 0xff, 0xff, 0xff)...))
	entry := fmt.Sprintf(":%s:M::%s:%s:%s:F", name, magic, mask, interpreter)
	if err := os.WriteFile(dir+"/register", []byte(entry), 0); err != nil {
		t.Fatalf("cannot register %s: %v", interpreter, err)
	}
	unregister = func() { os.WriteFile(filepath.Join(dir, name), []byte("-1"), 0) }
	t.Cleanup(unregister)
	return unregister
}

func escaped(p []byte) string {
	var s strings.Builder
	for _, b := range p {
		fmt.Fprintf(&s, `\x%02x`, b)
	}
	return s.String()
}
