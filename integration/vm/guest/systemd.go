package main

import (
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/integration/vm/job"
)

// becomeSystemd does what the boot loader, udev and the installation of a Debian machine would have done, and makes way for
// systemd, which mounts the rest itself.
func (g *guest) becomeSystemd() error {
	if err := mountAll(kernelMounts[:3]); err != nil { // proc, sys, dev
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := setClock(g.job.Now); err != nil {
		return err
	}
	if err := scratch(); err != nil {
		return err
	}
	const systemd = "/usr/lib/systemd/systemd"
	return fmt.Errorf("cannot become systemd: %w", unix.Exec(systemd, []string{systemd}, job.Environment()))
}

// serve runs the job as a service of systemd's.
func (g *guest) serve() error {
	if err := g.readJob(); err != nil {
		return err
	}
	if err := g.openPorts(); err != nil {
		return err
	}
	g.tell(job.Event{What: job.Up})
	return g.steps()
}

// ask has systemd turn the power off, which ends this process, too.
func (g *guest) ask() {
	g.tell(job.Event{What: job.Down})
	if out, err := exec.Command("systemctl", "poweroff").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "guest: systemctl poweroff: %v: %s\n", err, out)
		unix.Sync()
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
}
