package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// elfFile makes a 64-bit ELF file of the given segments.
func elfFile(machine elf.Machine, loader string, segments ...elf.Prog64) []byte {
	if loader != "" {
		segments = append(segments, elf.Prog64{Type: uint32(elf.PT_INTERP), Off: 4000, Filesz: uint64(len(loader) + 1), Memsz: uint64(len(loader) + 1)})
	}
	header := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: uint16(len(segments)),
	}
	program, _ := binary.Append(nil, binary.LittleEndian, header)
	for _, s := range segments {
		program, _ = binary.Append(program, binary.LittleEndian, s)
	}
	program = append(program, make([]byte, 4000-len(program))...)
	return append(append(program, loader...), 0)
}

func load(off, vaddr, size, align uint64, flags elf.ProgFlag) elf.Prog64 {
	return elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(flags), Off: off, Vaddr: vaddr, Filesz: size, Memsz: size, Align: align}
}

func testHost(page int64, runs32, foreign bool) executes {
	host := hostExecutes()
	host.page, host.native = page, elf.EM_AARCH64
	host.compat = func(elf.Machine) bool { return runs32 }
	host.foreign = func([]byte) bool { return foreign }
	return host
}

func TestCheckExecutable(t *testing.T) {
	rx, rw := elf.PF_R|elf.PF_X, elf.PF_R|elf.PF_W
	wide := []elf.Prog64{load(0, 0x400000, 0x1000, 0x10000, rx), load(0x10000, 0x410000, 0x1000, 0x10000, rw)}
	narrow := []elf.Prog64{load(0, 0x400000, 0x1000, 0x1000, rx), load(0x1000, 0x402000, 0x1000, 0x1000, rw)}
	shared := []elf.Prog64{load(0, 0x400000, 0x1000, 0x1000, rx), load(0x2000, 0x402000, 0x1000, 0x1000, rw)}
	files := map[string][]byte{
		"/bin/good":        elfFile(elf.EM_AARCH64, "", wide...),
		"/bin/narrow":      elfFile(elf.EM_AARCH64, "", narrow...),
		"/bin/shared":      elfFile(elf.EM_AARCH64, "", shared...),
		"/bin/amd64":       elfFile(elf.EM_X86_64, "", wide...),
		"/bin/arm":         smallProgram(elf.EM_ARM, exit32["arm64"]),
		"/bin/no-loader":   elfFile(elf.EM_AARCH64, "/lib/ld-musl-aarch64.so.1", wide...),
		"/bin/loader":      elfFile(elf.EM_AARCH64, "/lib/ld.so", wide...),
		"/lib/ld.so":       elfFile(elf.EM_AARCH64, "", wide...),
		"/bin/script":      []byte("#! /bin/amd64 -x\nhello"),
		"/bin/good-script": []byte("#!/bin/good\n"),
		"/bin/lost-script": []byte("#!/usr/bin/env bash\n"),
		"/bin/nested":      []byte("#!/bin/script\n"),
		"/bin/text":        []byte("echo a shell runs me"),
		"/bin/cut":         []byte("\x7fELF\x02"),
		"/bin/empty":       nil,
		"/app/tool":        elfFile(elf.EM_X86_64, "", wide...),
	}
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	os.Symlink("/bin/amd64", filepath.Join(root, "bin/link"))
	os.Symlink("../../../../../../../../bin/sh", filepath.Join(root, "app/outside"))
	os.Chmod(filepath.Join(root, "bin/empty"), 0o644)
	four, sixtyFour := testHost(4<<10, false, false), testHost(64<<10, false, false)
	for what, c := range map[string]struct {
		program  Program
		host     executes
		platform bool   // it is ErrPlatform
		words    string // in the error; none: no error
	}{
		"good":                 {Program{Name: "/bin/good"}, four, false, ""},
		"by PATH":              {Program{Name: "amd64", Path: "/nowhere:/bin"}, four, true, "linux/arm64"},
		"by default PATH":      {Program{Name: "amd64"}, four, true, "/bin/amd64 is a program for amd64"},
		"by working directory": {Program{Name: "./tool", Dir: "/app"}, four, true, "/app/./tool"},
		"through a link":       {Program{Name: "/bin/link"}, four, true, "multi-platform"},
		"out of the root":      {Program{Name: "/app/outside"}, four, false, ""},
		"32 bit":               {Program{Name: "/bin/arm"}, four, true, "32-bit program for arm"},
		"32 bit that runs":     {Program{Name: "/bin/arm"}, testHost(4<<10, true, false), false, ""},
		"binfmt":               {Program{Name: "/bin/amd64"}, testHost(4<<10, false, true), false, ""},
		"4K on 4K":             {Program{Name: "/bin/narrow"}, four, false, ""},
		"4K on 64K":            {Program{Name: "/bin/narrow"}, sixtyFour, true, "max-page-size=65536"},
		"shared page":          {Program{Name: "/bin/shared"}, sixtyFour, true, "pages of 64 KiB"},
		"64K on 64K":           {Program{Name: "/bin/good"}, sixtyFour, false, ""},
		"no loader":            {Program{Name: "/bin/no-loader"}, four, false, "ld-musl-aarch64.so.1"},
		"loader in a volume":   {Program{Name: "/bin/no-loader", Hidden: []string{"/lib"}}, four, false, ""},
		"loader":               {Program{Name: "/bin/loader"}, four, false, ""},
		"script":               {Program{Name: "/bin/script"}, four, true, "/bin/amd64"},
		"good script":          {Program{Name: "/bin/good-script"}, four, false, ""},
		"interpreter missing":  {Program{Name: "/bin/lost-script"}, four, false, "/usr/bin/env"},
		"one level only":       {Program{Name: "/bin/nested"}, four, false, ""},
		"text":                 {Program{Name: "/bin/text"}, four, false, ""},
		"cut off":              {Program{Name: "/bin/cut"}, four, false, ""},
		"not executable":       {Program{Name: "/bin/empty"}, four, false, ""},
		"a directory":          {Program{Name: "/bin"}, four, false, ""},
		"missing":              {Program{Name: "/bin/none"}, four, false, ""},
		"under a volume":       {Program{Name: "/app/tool", Hidden: []string{"/app/"}}, four, false, ""},
		"beside a volume":      {Program{Name: "/app/tool", Hidden: []string{"/app/too"}}, four, true, "amd64"},
		"volume first in PATH": {Program{Name: "amd64", Path: "/app:/bin", Hidden: []string{"/app"}}, four, false, ""},
	} {
		err := c.program.check(root, c.host)
		switch {
		case c.words == "" && err != nil:
			t.Errorf("%s: %v", what, err)
		case c.words != "" && (err == nil || !strings.Contains(err.Error(), c.words) || errors.Is(err, ErrPlatform) != c.platform):
			t.Errorf("%s: %v; want words %q, ErrPlatform %v", what, err, c.words, c.platform)
		}
	}
}

func TestThisMachineRunsItsOwnPrograms(t *testing.T) {
	if err := CheckExecutable("/", Program{Name: "sh", Path: os.Getenv("PATH")}); err != nil {
		t.Error(err)
	}
	// The kernel's own word: where the probe says that 32-bit programs run, one does.
	ran := runsProgram(smallProgram(machines[map[string]string{"amd64": "386", "arm64": "arm"}[runtime.GOARCH]], exit32[runtime.GOARCH]))
	t.Logf("32-bit programs run here: %v", ran)
	if ran != runs32() {
		t.Error("the probe changed its mind")
	}
	if runsProgram(smallProgram(elf.EM_SPARC, []byte{0})) {
		t.Error("a program for another machine ran")
	}
}

func TestBinfmtEntry(t *testing.T) {
	entry := "enabled\ninterpreter /usr/bin/qemu-arm\nflags: OCF\noffset 0\nmagic 7f454c4601010100000000000000000002002800\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "qemu-arm"), []byte(entry), 0o644)
	os.WriteFile(filepath.Join(dir, "status"), []byte("enabled\n"), 0o644)
	arm := smallProgram(elf.EM_ARM, exit32["arm64"])
	if !registered(dir, arm) {
		t.Error("an arm program is not recognised")
	}
	if registered(dir, smallProgram(elf.EM_386, exit32["amd64"])) || registered(dir, []byte{0x7f}) || registered(dir, nil) {
		t.Error("others are")
	}
	os.WriteFile(filepath.Join(dir, "qemu-arm"), bytes.Replace([]byte(entry), []byte("enabled"), []byte("disabled"), 1), 0o644)
	if registered(dir, arm) {
		t.Error("a disabled entry counts")
	}
}

// An interpreter counts for whole images only if it is there in every container.
func TestEmulatedArchitectures(t *testing.T) {
	dir := t.TempDir()
	entry := "enabled\ninterpreter /usr/bin/qemu-s390x-static\nflags: OC%s\noffset 0\nmagic 7f454c4602020100000000000000000000020016\nmask ffffffffffffff00fffffffffffffffffffeffff\n"
	for flags, want := range map[string]bool{"F": true, "": false} {
		os.WriteFile(filepath.Join(dir, "s390x"), fmt.Appendf(nil, entry, flags), 0o644)
		if got := registeredFor(dir, programHeader("s390x"), fixed); got != want {
			t.Errorf("with flags OC%s: %v", flags, got)
		}
	}
	for arch := range machines {
		if h := programHeader(arch); arch != "s390x" && (h == nil || registered(dir, h)) {
			t.Errorf("the interpreter for s390x is taken for one of %s", arch)
		}
		if f, err := elf.NewFile(bytes.NewReader(programHeader(arch))); err != nil || f.Machine != machines[arch] {
			t.Errorf("%s: %v", arch, err)
		}
	}
	if programHeader("vax") != nil {
		t.Error("an unknown architecture has a header")
	}
}

// The digest of one manifest asks for emulation where there is any; what an index offers never does.
func TestDigestOfAnotherPlatform(t *testing.T) {
	want := thisMachine()
	want.OSFeatures = append(want.OSFeatures, orEmulated)
	other := ocispec.Platform{OS: "linux", Architecture: "s390x"}
	if rank(other, want) >= 0 != emulates("s390x") {
		t.Error("an image of another platform fits without an emulator")
	}
	err := &platformError{want: want, available: []ocispec.Platform{other}}
	if !strings.Contains(err.Error(), "binfmt_misc") || !strings.Contains(err.Error(), "s390x") {
		t.Error(err)
	}
}
