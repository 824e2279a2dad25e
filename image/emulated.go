package image

import (
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
)

// orEmulated among a wanted platform's features lets an image of any architecture stand in whose programs this machine
// runs through binfmt_misc. Only the pull of one manifest by its digest asks for it: that names an image and not a
// choice, so emulation, which costs a factor of ten, is never a surprise.
const orEmulated = "evenkeel.or-emulated"

// emulates reports whether an interpreter is registered for an architecture's programs that is there in every
// container: one with the flag F, which the kernel opened when it was registered.
func emulates(arch string) bool {
	header := programHeader(arch)
	return header != nil && registeredFor(binfmtDir, header, fixed)
}

// fixed reports whether an entry has the flag F.
func fixed(entry string) bool {
	_, flags, _ := strings.Cut(entry, "\nflags: ")
	flags, _, _ = strings.Cut(flags, "\n")
	return strings.Contains(flags, "F")
}

// programHeader begins a static program for an architecture, as far as interpreters are told to look.
func programHeader(arch string) []byte {
	machine, known := machines[arch]
	if !known {
		return nil
	}
	var order binary.ByteOrder = binary.LittleEndian
	class, data := elf.ELFCLASS64, elf.ELFDATA2LSB
	switch arch {
	case "386", "arm":
		class = elf.ELFCLASS32
	case "mips":
		class, data, order = elf.ELFCLASS32, elf.ELFDATA2MSB, binary.BigEndian
	case "s390x":
		data, order = elf.ELFDATA2MSB, binary.BigEndian
	}
	header := make([]byte, 64)
	copy(header, elf.ELFMAG+string([]byte{byte(class), byte(data), byte(elf.EV_CURRENT)}))
	order.PutUint16(header[16:], uint16(elf.ET_EXEC))
	order.PutUint16(header[18:], uint16(machine))
	order.PutUint32(header[20:], uint32(elf.EV_CURRENT))
	return header
}

// registeredFor looks for an enabled interpreter of files that begin so, with an entry that is to somebody's liking.
func registeredFor(dir string, start []byte, liked func(entry string) bool) bool {
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, file := range files {
		text, err := os.ReadFile(file)
		entry := string(text)
		if err == nil && strings.HasPrefix(entry, "enabled\ninterpreter") && binfmtMatches(entry, start) && liked(entry) {
			return true
		}
	}
	return false
}
