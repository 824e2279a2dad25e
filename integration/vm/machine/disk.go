package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Format makes an empty ext4 file system in a sparse file.
func Format(ctx context.Context, path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	// lazy_itable_init=0 would write what a fresh sparse file is already; lazily, the guest's kernel would write it.
	out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-O", "project,quota", "-E", "lazy_itable_init=0,nodiscard,quotatype=prjquota", path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cannot make a file system (package e2fsprogs): %w: %s", err, out)
	}
	return f.Close()
}

// Extract copies the files below a directory of such a file system, which no machine may have mounted, into one that exists.
// It needs no root and mounts nothing. Links are not followed.
func Extract(ctx context.Context, disk, from, to string) error {
	// A machine that ends without unmounting leaves its last changes in the journal alone, where debugfs does not look.
	// Exit code 1 says that something was corrected.
	out, err := exec.CommandContext(ctx, "e2fsck", "-y", "-E", "journal_only", disk).CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		return fmt.Errorf("cannot replay the journal of %s (package e2fsprogs): %w: %s", disk, err, out)
	}
	// The slash at the end makes debugfs leave the directory's own name out.
	c := exec.CommandContext(ctx, "debugfs", "-R", fmt.Sprintf("rdump %q %q", from+"/", to), disk)
	if out, err = c.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot read %s from %s: %w: %s", from, disk, err, out)
	}
	// It ends with 0 whatever happened, and its first line is its version.
	if _, said, _ := strings.Cut(string(out), "\n"); strings.TrimSpace(said) != "" {
		return fmt.Errorf("cannot read %s from %s: %s", from, disk, said)
	}
	return nil
}
