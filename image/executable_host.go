package image

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

var machines = map[string]elf.Machine{
	"amd64": elf.EM_X86_64, "386": elf.EM_386, "arm64": elf.EM_AARCH64, "arm": elf.EM_ARM,
	"riscv64": elf.EM_RISCV, "ppc64le": elf.EM_PPC64, "s390x": elf.EM_S390, "loong64": elf.EM_LOONGARCH, "mips": elf.EM_MIPS,
}

func hostExecutes() executes {
	names := map[elf.Machine]string{}
	for name, m := range machines {
		names[m] = name
	}
	return executes{
		page: int64(os.Getpagesize()), native: machines[runtime.GOARCH], cpuNames: names,
		older:   map[elf.Machine]elf.Machine{elf.EM_X86_64: elf.EM_386, elf.EM_AARCH64: elf.EM_ARM},
		compat:  func(elf.Machine) bool { return runs32() },
		foreign: func(start []byte) bool { return registered(binfmtDir, start) },
	}
}

// runs32 reports whether this machine runs 32-bit programs of its family: 386 on amd64, arm on arm64. It takes the CPU
// (many arm64 ones have no AArch32 at EL0), the kernel's configuration (CONFIG_COMPAT, CONFIG_IA32_EMULATION) and its
// command line (ia32_emulation=off), and no file tells all three: cpuinfo shows what one core has, and
// personality(PER_LINUX32), which arm64 refuses without AArch32, passes on kernels without CONFIG_COMPAT. So the kernel is
// given the smallest program there is, once, when the first image asks.
var runs32 = sync.OnceValue(func() bool {
	code, machine := exit32[runtime.GOARCH], machines[map[string]string{"amd64": "386", "arm64": "arm"}[runtime.GOARCH]]
	if code == nil {
		return false
	}
	program := smallProgram(machine, code)
	return !registered(binfmtDir, program) && runsProgram(program) // what an emulator runs is no word of the CPU
})

// exit32 is exit(0) in machine code.
var exit32 = map[string][]byte{
	"amd64": {0x31, 0xdb, 0xb8, 1, 0, 0, 0, 0xcd, 0x80}, // xor ebx,ebx; mov eax,1; int 0x80
	"arm64": {
		0x00, 0x00, 0xa0, 0xe3, // mov r0, #0
		0x01, 0x70, 0xa0, 0xe3, // mov r7, #1
		0x00, 0x00, 0x00, 0xef, // svc 0
	},
}

// smallProgram is a static 32-bit ELF file of one segment, aligned for any page size.
func smallProgram(machine elf.Machine, code []byte) []byte {
	const at, headers = 0x100000, 52 + 32
	header := elf.Header32{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS32), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Entry: at + headers, Phoff: 52, Ehsize: 52, Phentsize: 32, Phnum: 1,
	}
	if machine == elf.EM_ARM {
		header.Flags = 5 << 24 // EABI version 5, which the kernel asks for
	}
	size := uint32(headers + len(code))
	segment := elf.Prog32{Type: uint32(elf.PT_LOAD), Vaddr: at, Paddr: at, Filesz: size, Memsz: size, Flags: uint32(elf.PF_R | elf.PF_X), Align: 0x10000}
	program, _ := binary.Append(nil, binary.LittleEndian, header)
	program, _ = binary.Append(program, binary.LittleEndian, segment)
	return append(program, code...)
}

// runsProgram runs a program from memory. Where the node lets nobody do that (vm.memfd_noexec=2, a noexec policy) nothing
// is known, and nothing is refused for it.
func runsProgram(program []byte) bool {
	f, err := inMemory(program)
	if err != nil {
		return true
	}
	defer f.Close()
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
	defer stop()
	for range 10 {
		err = exec.CommandContext(ctx, "/proc/self/fd/"+strconv.Itoa(int(f.Fd()))).Run()
		if !errors.Is(err, unix.ETXTBSY) { // a process that is just being started elsewhere still has it open for writing
			break
		}
		time.Sleep(time.Millisecond)
	}
	return err == nil || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOENT)
}

// inMemory returns the program open for reading alone, as execve(2) wants it.
func inMemory(program []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("evenkeel-probe", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err == unix.EINVAL { // before 6.3
		fd, err = unix.MemfdCreate("evenkeel-probe", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, err
	}
	writer := os.NewFile(uintptr(fd), "probe")
	defer writer.Close()
	if _, err := writer.Write(program); err != nil {
		return nil, err
	}
	return os.Open("/proc/self/fd/" + strconv.Itoa(fd))
}
