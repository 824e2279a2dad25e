package hostpath

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Mount is one line of the mount table.
type Mount struct {
	Point  string
	Type   string // of the file system, with its sub type: fuse.sshfs
	Shared bool   // what is mounted below it shows in its peers
	Slave  bool   // what is mounted in its master shows below it
}

// The request and answer of statmount(2), linux/mount.h. The system call asks the mount and never its file system.
type (
	mountRequest struct {
		size, _   uint32
		id, param uint64
	}
	mountAnswer struct {
		size, options                    uint32
		mask                             uint64
		major, minor                     uint32
		magic                            uint64
		superFlags, fsType               uint32
		id, parent                       uint64
		oldID, oldParent                 uint32
		attributes, propagation          uint64
		peerGroup, master, propagateFrom uint64
		root, point                      uint32
		_                                [400]byte // what later kernels add; the text begins at 512
		text                             [1024]byte
	}
)

const (
	sysStatmount   = 457 // on every architecture
	wantMountBasic = 0x2
	wantMountPoint = 0x10
	wantFSType     = 0x20
)

// statmount describes the mount of an open descriptor (Linux 6.8).
func statmount(fd int) (Mount, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID_UNIQUE, &st); err != nil {
		return Mount{}, err
	}
	if st.Mask&unix.STATX_MNT_ID_UNIQUE == 0 {
		return Mount{}, unix.ENOSYS
	}
	request := mountRequest{size: uint32(unsafe.Sizeof(mountRequest{})), id: st.Mnt_id, param: wantMountBasic | wantMountPoint | wantFSType}
	var answer mountAnswer
	_, _, errno := unix.Syscall6(sysStatmount, uintptr(unsafe.Pointer(&request)), uintptr(unsafe.Pointer(&answer)), unsafe.Sizeof(answer), 0, 0, 0)
	if errno != 0 {
		return Mount{}, errno
	}
	return Mount{
		Point: answer.string(answer.point), Type: answer.string(answer.fsType),
		Shared: answer.propagation&unix.MS_SHARED != 0, Slave: answer.propagation&unix.MS_SLAVE != 0,
	}, nil
}

func (a *mountAnswer) string(offset uint32) string {
	if int(offset) >= len(a.text) {
		return ""
	}
	text, _, _ := bytes.Cut(a.text[offset:], []byte{0})
	return string(text)
}

// mountOf reads the mount of an open descriptor from the mount table, by its id: names can be mounted over.
func mountOf(fd int) (Mount, error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return Mount{}, err
	}
	_, rest, _ := strings.Cut(string(info), "mnt_id:")
	id, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Mount{}, err
	}
	for line := range strings.Lines(string(table)) {
		if m, its, ok := parseMount(line); ok && its == id {
			return m, nil
		}
	}
	return Mount{}, errors.New("its mount is not in the mount table of this process")
}

// lexical finds the mount that a path would be on if none of its parts were a link.
func lexical(path string) (best Mount) {
	table, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(table)) {
		m, _, ok := parseMount(line)
		below := path == m.Point || strings.HasPrefix(path, strings.TrimSuffix(m.Point, "/")+"/")
		if ok && below && len(m.Point) >= len(best.Point) { // the later of two at one place lies on top
			best = m
		}
	}
	return best
}

// parseMount reads a line of proc_pid_mountinfo(5).
func parseMount(line string) (m Mount, id string, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 10 {
		return m, "", false
	}
	m.Point = unescape(fields[4])
	for i, field := range fields[6:] {
		if field == "-" && 6+i+1 < len(fields) {
			m.Type = fields[6+i+1]
			return m, fields[0], true
		}
		m.Shared = m.Shared || strings.HasPrefix(field, "shared:")
		m.Slave = m.Slave || strings.HasPrefix(field, "master:")
	}
	return m, "", false
}

// unescape undoes the octal escapes of blanks, tabs, newlines and backslashes.
func unescape(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+3 < len(text) {
			if n, err := strconv.ParseUint(text[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}
