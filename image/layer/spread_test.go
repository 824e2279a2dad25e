package layer

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSpread(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		must(t, Spread(dir))
	}
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	if st.Type == unix.EXT4_SUPER_MAGIC {
		opened, err := os.Open(dir)
		must(t, err)
		defer opened.Close()
		if flags, err := unix.IoctlGetInt(int(opened.Fd()), unix.FS_IOC_GETFLAGS); err != nil || flags&topDir == 0 {
			t.Errorf("flags %#x, %v, want %#x among them", flags, err, topDir)
		}
	}
	must(t, Spread("/proc/self")) // has no such flags
	if err := Spread(dir + "/gone"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
}
