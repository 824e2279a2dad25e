package image

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLayersAreSpread: ext4 must not put layers that are unpacked side by side into one block group.
func TestLayersAreSpread(t *testing.T) {
	s := newStore(t)
	var st unix.Statfs_t
	if err := unix.Statfs(s.ingest(), &st); err != nil {
		t.Fatal(err)
	}
	if st.Type != unix.EXT4_SUPER_MAGIC {
		t.Logf("%s is not on ext4, where this means nothing", s.ingest())
		return
	}
	dir, err := os.Open(s.ingest())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	const topDir = 0x00020000 // FS_TOPDIR_FL
	if flags, err := unix.IoctlGetInt(int(dir.Fd()), unix.FS_IOC_GETFLAGS); err != nil || flags&topDir == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
}
