package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// enforce loads an SELinux policy and has the kernel enforce it: this process and its children are the node from then on.
func enforce(policy string) error {
	if policy == "" {
		return nil
	}
	data, err := os.ReadFile(policy)
	if err != nil {
		return err
	}
	if err := mountAll([]mount{{"selinuxfs", "/sys/fs/selinux", "selinuxfs", unix.MS_NOSUID | unix.MS_NOEXEC, ""}}); err != nil {
		return err
	}
	// The kernel takes a policy in one write, which os.WriteFile makes.
	if err := os.WriteFile("/sys/fs/selinux/load", data, 0); err != nil {
		return fmt.Errorf("cannot load the SELinux policy: %w", err)
	}
	return os.WriteFile("/sys/fs/selinux/enforce", []byte("1"), 0)
}
