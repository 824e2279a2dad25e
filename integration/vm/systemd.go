package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/evenkeel/evenkeel/integration/vm/cpio"
)

// underSystemd are the packages that make a node of the bare machine.
var underSystemd = []string{"systemd", "dbus"}

// systemdArguments keep the boot short and let the console tell of jobs that take long.
const systemdArguments = "systemd.log_level=notice systemd.show_status=error"

// generators look, at each boot, for disks, terminals and old scripts that this machine does not have.
var generators = strings.Fields(`cryptsetup debug fstab getty gpt-auto hibernate-resume integritysetup rc-local run
	system-update sysv veritysetup bless-boot`)

// needless are units that packages want at each boot, and no test.
var needless = strings.Fields(`
	cryptsetup.target integritysetup.target veritysetup.target getty.target remote-fs.target swap.target
	kmod-static-nodes.service proc-sys-fs-binfmt_misc.automount sys-fs-fuse-connections.mount
	sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount
	systemd-ask-password-console.path systemd-ask-password-wall.path systemd-binfmt.service
	systemd-boot-system-token.service systemd-firstboot.service systemd-hwdb-update.service
	systemd-journal-flush.service systemd-machine-id-commit.service systemd-modules-load.service
	systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-pcrmachine.service systemd-pstore.service
	systemd-random-seed.service systemd-remount-fs.service systemd-repart.service systemd-rfkill.socket
	systemd-sysctl.service systemd-sysusers.service systemd-sysext.service
	systemd-tmpfiles-setup-dev.service systemd-tmpfiles-setup.service systemd-tmpfiles-clean.timer
	systemd-update-done.service systemd-update-utmp.service systemd-update-utmp-runlevel.service
	systemd-user-sessions.service systemd-logind.service systemd-timesyncd.service systemd-networkd.service
	apparmor.service ldconfig.service e2scrub_reap.service e2scrub_all.timer fstrim.timer
`)

// jobUnit runs the job as an operator's own service would run it.
const jobUnit = `[Unit]
Description=Tests of Evenkeel
After=basic.target

[Service]
ExecStart=/init job
Delegate=yes
KillMode=mixed
TimeoutStopSec=10
LimitNOFILE=1048576
TasksMax=infinity
StandardOutput=journal+console
StandardError=journal+console
`

// engineConfig is that of the engine of the installed unit.
const engineConfig = `version = 1
log_level = "debug"

[network]
mode = "builtin"
`

// systemd adds what the installation of Debian and of the project would have left on the disk.
func (l *load) systemd(w *cpio.Writer) {
	const units = "etc/systemd/system/"
	for _, name := range generators {
		w.Link("etc/systemd/system-generators/systemd-"+name+"-generator", "/dev/null")
	}
	for _, name := range needless {
		w.Link(units+name, "/dev/null")
	}
	w.Link(units+"default.target", "/usr/lib/systemd/system/multi-user.target")
	w.Bytes(units+"evenkeel-test.service", 0o644, jobUnit)
	w.Link(units+"multi-user.target.wants/evenkeel-test.service", "../evenkeel-test.service")
	w.Bytes("etc/systemd/journald.conf", 0o644, "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n")
	w.Bytes("etc/machine-id", 0o444, strings.Repeat("e0", 16)+"\n")
	w.Bytes("etc/hostname", 0o644, "evenkeel-vm\n")
	w.Bytes("etc/fstab", 0o644, "")
	w.Bytes("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/nonexistent:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n")
	w.Bytes("etc/group", 0o644, "root:x:0:\ntty:x:5:\nmessagebus:x:100:\nnogroup:x:65534:\n")
	w.Bytes("etc/evenkeel/config.toml", 0o644, engineConfig)
	w.Link("usr/local/bin/evenkeel", guestRoot+"/bin/linux-"+l.arch+"/evenkeel")
}

// installUnits does what `make install` does with the units in dist.
func (l *load) installUnits() error {
	files, err := filepath.Glob(filepath.Join(l.root, "dist", "evenkeel.*"))
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		l.fill = append(l.fill, func(w *cpio.Writer) {
			w.Bytes("usr/local/lib/systemd/system/"+filepath.Base(file), 0o644, strings.ReplaceAll(string(data), "@PREFIX@", "/usr/local"))
			w.Bytes(guestRoot+"/dist/"+filepath.Base(file), 0o644, string(data))
		})
	}
	return err
}
