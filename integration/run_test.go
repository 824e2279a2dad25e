package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/evenkeel/evenkeel/internal/effect"
)

// manifest writes a Pod whose containers run scripts of busybox's shell.
func manifest(t *testing.T, name, spec string) string {
	t.Helper()
	text := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: shop}}\nspec:\n", name)
	for line := range strings.Lines(strings.ReplaceAll(strings.Trim(spec, "\n"), "IMAGE", busybox)) {
		text += "  " + line
	}
	file := filepath.Join(t.TempDir(), name+".yaml")
	must(t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

// nothingRuns checks that nothing of `run` is left, not even a volume.
func (n *node) nothingRuns() {
	n.t.Helper()
	if out, err := n.evenkeel("pods", "-q"); err != nil || out != "" {
		n.t.Errorf("pods are left: %v\n%s", err, out)
	}
	if left, _ := os.ReadDir(filepath.Join(n.Root(), "run")); len(left) > 0 {
		n.t.Errorf("directories of pods are left: %v", left)
	}
	n.says("nothing is left over", "leftovers")
}

func exitCode(err error) int {
	if exit, ok := err.(*exec.ExitError); ok {
		return exit.ExitCode()
	}
	return 0
}

// TestRun takes manifests through their lives, without a kubelet.
func TestRun(t *testing.T) {
	waits(t)
	n := start(t, "builtin")
	whole := manifest(t, "whole", `
restartPolicy: Never
terminationGracePeriodSeconds: 5
initContainers:
- {name: side, image: IMAGE, restartPolicy: Always, command: [sh, -c, 'trap "echo side ends; exit 0" TERM; while :; do sleep 0.1; done']}
- name: first
  image: IMAGE
  command: [sh, -c, 'echo made by first > /v/file; mkdir /v/dir; echo deep > /v/dir/file']
  volumeMounts: [{name: v, mountPath: /v}]
containers:
- name: main
  image: IMAGE
  command: [sh, -c, 'cat /file /dir/file; echo $IP $APP; id -u; df -k /memory | tail -n 1; exit 3']
  env:
  - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
  - {name: APP, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
  securityContext: {runAsUser: 1234}
  resources: {limits: {cpu: 500m, memory: 64Mi}}
  volumeMounts:
  - {name: v, mountPath: /file, subPath: file}
  - {name: v, mountPath: /dir, subPath: dir, readOnly: true}
  - {name: m, mountPath: /memory}
volumes:
- {name: v}
- {name: m, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
`)
	out, err := n.evenkeel("run", whole)
	if code := exitCode(err); code != 3 {
		t.Errorf("exit code %d of a pod whose container ended with 3", code)
	}
	for _, want := range []string{"main  | made by first\n", "main  | deep\n", "main  | 10.", " shop\n", "main  | 1234\n", " 1024 ", "container first ended with exit code 0", "side  | side ends\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("run does not say %q:\n%s", want, out)
		}
	}
	n.says("notready", "pods")
	n.says("main  | deep", "logs", "whole")
	if out, err := n.evenkeel("run", whole); err == nil || !strings.Contains(out, "exists already") {
		t.Errorf("a second pod of one name: %v\n%s", err, out)
	}
	n.says("default/whole", "rm", "whole")
	n.nothingRuns()

	// A link that an init container put in the place of a sub path leads nowhere.
	escape := manifest(t, "escape", `
restartPolicy: Never
initContainers:
- {name: first, image: IMAGE, command: [sh, -c, 'rm -rf /v/sub; ln -s / /v/sub'], volumeMounts: [{name: v, mountPath: /v}]}
containers:
- {name: main, image: IMAGE, command: [ls, /host], volumeMounts: [{name: v, mountPath: /host, subPath: sub}]}
volumes: [{name: v}]
`)
	if out, err := n.evenkeel("run", escape); exitCode(err) != 1 || !strings.Contains(out, "cannot use sub path sub of volume v in container main") {
		t.Errorf("a sub path left its volume: %v\n%s", err, out)
	}
	n.nothingRuns()

	// A sidecar is watched from its start on: an init container waits for what only its second attempt does.
	helped := manifest(t, "helped", `
restartPolicy: Never
initContainers:
- {name: side, image: IMAGE, restartPolicy: Always, command: [sh, -c, 'echo side tries; test -e /v/tried || { touch /v/tried; exit 1; }; touch /v/up; exec sleep 1000'], volumeMounts: [{name: v, mountPath: /v}]}
- {name: first, image: IMAGE, command: [sh, -c, 'until test -e /v/up; do sleep 0.1; done'], volumeMounts: [{name: v, mountPath: /v}]}
containers:
- {name: main, image: IMAGE, command: ["true"]}
terminationGracePeriodSeconds: 0
volumes: [{name: v}]
`)
	if out, err := n.evenkeel("run", "--rm", helped); err != nil || strings.Count(out, "side tries") != 2 {
		t.Errorf("a sidecar that an init container waits for: %v\n%s", err, out)
	}
	n.nothingRuns()
	n.says("starting container side again", "run", "--detach", helped)
	n.says("running", "ps")
	n.says("default/helped", "rm", "-f", "helped")
	n.nothingRuns()

	again := manifest(t, "again", `
restartPolicy: OnFailure
containers:
- {name: main, image: IMAGE, command: [sh, -c, 'test -e /v/tried && exit 0; touch /v/tried; exit 9'], volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /s, subPath: s}]}
volumes: [{name: v}]
`)
	if out, err := n.evenkeel("run", "--rm", again); err != nil || !strings.Contains(out, "ended with exit code 9") || !strings.Contains(out, "starting container main again") {
		t.Errorf("a container that succeeds at the second try: %v\n%s", err, out)
	}
	n.nothingRuns()
}

// TestRunWhileTheDaemonDies: `run` asks again for what was made and not answered.
func TestRunWhileTheDaemonDies(t *testing.T) {
	n := start(t, "builtin")
	short := manifest(t, "short", `
restartPolicy: Never
containers:
- {name: main, image: IMAGE, command: [echo, done]}
`)
	for _, at := range []string{"kill-before:pod.ready", "kill-after:pod.ready", "kill-after:container.created", "kill-before:container.start", "kill-after:container.started"} {
		must(t, n.Restart(effect.FaultEnv+"="+at))
		type end struct {
			out string
			err error
		}
		ended := make(chan end, 1)
		go func() {
			out, err := n.evenkeel("run", "--rm", short)
			ended <- end{out, err}
		}()
		must(t, n.AwaitEnd(n.ctx()))
		must(t, n.Restart())
		if e := <-ended; e.err != nil || !strings.Contains(e.out, "done\n") {
			t.Errorf("%s: %v\n%s", at, e.err, e.out)
		}
		n.nothingRuns()
	}
}

const ticking = `
restartPolicy: Never
terminationGracePeriodSeconds: 1
containers:
- {name: main, image: IMAGE, command: [sh, -c, 'while echo tick; do sleep 0.1; done']}
`

// TestRunIsInterrupted: whatever ends the program ends its pod, and nothing stays.
func TestRunIsInterrupted(t *testing.T) {
	waits(t)
	n := start(t, "builtin")
	file := manifest(t, "ticking", ticking)
	for name, interrupt := range map[string]func(*exec.Cmd, *os.File) error{
		"Ctrl-C":          func(c *exec.Cmd, _ *os.File) error { return c.Process.Signal(syscall.SIGINT) },
		"closed terminal": func(c *exec.Cmd, _ *os.File) error { return c.Process.Signal(syscall.SIGHUP) },
		"closed pipe":     func(_ *exec.Cmd, out *os.File) error { return out.Close() },
		"engine is away": func(c *exec.Cmd, _ *os.File) error {
			return errors.Join(n.Kill(), c.Process.Signal(syscall.SIGINT), n.Start())
		},
	} {
		c := exec.CommandContext(n.ctx(), filepath.Join(bin, "evenkeel"), "run", file, "--address", "unix://"+n.Socket())
		out, in, err := os.Pipe()
		must(t, err)
		c.Stdout = in
		must(t, c.Start())
		must(t, in.Close())
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "tick\n" {
			t.Fatalf("%s: run says %q: %v", name, line, err)
		}
		must(t, interrupt(c, out))
		if code := exitCode(c.Wait()); code != 130 {
			t.Errorf("%s: exit code %d", name, code)
		}
		out.Close()
		n.nothingRuns()
	}
}

// TestToolsOnADetachedPod has the pod's tools look at one, and at each other's JSON.
func TestToolsOnADetachedPod(t *testing.T) {
	n := start(t, "builtin")
	n.says("", "run", "--detach", manifest(t, "ticking", ticking))
	out, err := n.evenkeel("stats", "ticking", "--output", "json")
	must(t, err)
	var stats []struct {
		Name, Pod                                 string
		CPUNanoCores, CPUNanoseconds, MemoryBytes uint64
	}
	must(t, json.Unmarshal([]byte(out), &stats))
	if len(stats) != 1 || stats[0].Pod != "default/ticking" || stats[0].CPUNanoCores == 0 || stats[0].CPUNanoseconds == 0 || stats[0].MemoryBytes == 0 {
		t.Errorf("stats: %s", out)
	}
	n.says("default/ticking", "stats")
	if out, err := n.evenkeel("leftovers", "--root", n.Root(), "--state", n.State); err == nil || !strings.Contains(out, fmt.Sprintf("(process %d)", n.PID())) {
		t.Errorf("leftovers of an engine that runs, and is not asked: %v\n%s", err, out)
	}
	// A daemon that was killed leaves its socket behind, at which nobody listens.
	must(t, n.Kill())
	config := filepath.Join(t.TempDir(), "config.toml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, "version = 1\nlisten = %q\nroot = %q\nstate = %q\n", "unix://"+n.Socket(), n.Root(), n.State), 0o600))
	if out, err := n.evenkeel("leftovers", "--config", config); exitCode(err) != 1 || !strings.Contains(out, "evenkeel-shim") {
		t.Errorf("leftovers of an engine that was killed: %v\n%s", err, out)
	}
	must(t, n.Start())
	if out, err := n.evenkeel("exec", "ticking", "--", "sh", "-c", "echo said; exit 7"); exitCode(err) != 7 || out != "said\n" {
		t.Errorf("exec: %v\n%s", err, out)
	}
	n.says("tick", "logs", "ticking", "--tail", "1")
	n.says("default/ticking", "rm", "-f", "ticking")
	n.nothingRuns()
}
