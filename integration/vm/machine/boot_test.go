package machine

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
)

const panic6 = "[    0.801] Key type dns_resolver registered\r\n" +
	"[    1.402113] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI\r\n" +
	"[    1.402113] CPU: 1 UID: 0 PID: 0 Comm: swapper/1 Not tainted 6.12.95+deb12-amd64 #1\r\n" +
	"[    1.402113] Oops: int3: 0000 [#2] PREEMPT SMP NOPTI\r\n" +
	"[    1.410000][    T0] Kernel panic - not syncing: Fatal exception in interrupt\r\n" +
	"[    1.410000] Kernel Offset: 0x2c00000 from 0xffffffff81000000\r\n"

func TestLastWords(t *testing.T) {
	for console, want := range map[string]string{
		panic6: "Oops: int3: 0000 [#1] PREEMPT SMP NOPTI: Kernel panic - not syncing: Fatal exception in interrupt",
		"[    0.9] Run /init as init process\r\n[    1.0] Kernel panic - not syncing: No working init found.\r\n[    1.1] ---[ end Kernel panic - not syncing: No working init found. ]---\r\n": "Kernel panic - not syncing: No working init found.",
		"[    0.9] Run /init as init process\n\n": "Run /init as init process",
		"": "nothing on the console",
	} {
		if got := lastWords(console); got != want {
			t.Errorf("%q ends with %q, want %q", console, got, want)
		}
	}
}

func TestWhichMachineBootsAgain(t *testing.T) {
	killed := exec.Command("sh", "-c", "kill -9 $$").Run()
	exited := exec.Command("sh", "-c", "exit 1").Run()
	for name, c := range map[string]struct {
		death death
		try   int
		want  bool
	}{
		"panic":                   {death{console: panic6}, 1, true},
		"panic at the second try": {death{console: panic6}, 2, true},
		"panic at the third try":  {death{console: panic6}, 3, false},
		"reset without a word":    {death{}, 1, true},
		"hung":                    {death{slow: true, err: killed}, 1, true},
		"qemu crashed":            {death{err: killed}, 1, true},
		"qemu refused":            {death{err: exited}, 1, false},
		"qemu lost its socket":    {death{err: errors.Join(exited, nil)}, 1, false},
		"first process refused":   {death{refused: "cannot mount cgroup2"}, 1, false},
		"interrupted":             {death{cancelled: true, err: killed}, 1, false},
		"up, whatever comes next": {death{up: true, console: panic6}, 1, false},
		"ended by a person":       {death{terminal: true, console: "boot\n"}, 1, false},
		"panic seen by a person":  {death{terminal: true, console: panic6}, 1, true},
		"hung, seen by a person":  {death{terminal: true, slow: true, err: killed}, 1, true},
	} {
		if got := c.death.again(c.try); got != c.want {
			t.Errorf("%s: boot again is %v, want %v", name, got, c.want)
		}
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var kept tail
	line := strings.Repeat("x", 99) + "\n"
	for range 10 * tailSize / len(line) {
		kept.Write([]byte(line))
	}
	kept.Write([]byte("the end\n"))
	if s := kept.String(); !strings.HasSuffix(s, line+"the end\n") || len(s) < tailSize || len(s) > 3*tailSize {
		t.Errorf("%d bytes are kept, which end with %q", len(s), s[max(0, len(s)-20):])
	}
}
