package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"

	"github.com/evenkeel/evenkeel/integration/vm/cpio"
	"github.com/evenkeel/evenkeel/integration/vm/job"
)

// seLinux stands in the place of appArmor: the kernel has one of the two.
const seLinux = "selinux=1 security=selinux enforcing=0"

// guestPolicy is where the compiled policy lies in the guest.
const guestPolicy = "/selinux.policy"

// confine compiles the policy of integration/vm/selinux, which is the same on both architectures, and puts it into the machine.
func (l *load) confine(ctx context.Context) error {
	if l.init == job.Systemd {
		return errors.New("-selinux: systemd would load a policy of its own; there is one for the bare machine only")
	}
	file := filepath.Join(l.dir, "policy")
	c := exec.CommandContext(ctx, "secilc", "-o", file, "-f", "/dev/null", filepath.Join(l.root, "integration/vm/selinux/policy.cil"))
	out, err := c.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("-selinux: %w: run `apt-get install secilc` first", err)
	}
	if err != nil {
		return fmt.Errorf("cannot compile the SELinux policy: %w: %s", err, out)
	}
	l.fill = append(l.fill, func(w *cpio.Writer) { w.File(guestPolicy, file) })
	return nil
}
