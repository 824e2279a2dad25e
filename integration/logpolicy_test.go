package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// TestLogsAreWholeUnderRotationAndRestarts: every line once, in order, while the log is rotated at 5 MB or less and the daemon is killed
// and started again every second.
func TestLogsAreWholeUnderRotationAndRestarts(t *testing.T) {
	const lineSize = 100
	size := engine.Rounds(40_000_000, 16_000_000)
	if *long {
		size = 200_000_000
	}
	lines := size / lineSize
	rotateAt := int64(min(5_000_000, size/8))
	rate := min(8_000_000, int(float64(size)/engine.Patience(5*time.Second).Seconds())) // bytes a second, or all is written before the first restart
	n := start(t, "builtin")
	cfg := n.Pod("whole")
	cfg.Annotations["log.evenkeel.dev/rate"] = strconv.Itoa(rate)
	pod := n.runPod(cfg)
	// awk would take minutes: seq -w counts in fixed width, and sed makes lines of 100 bytes of it.
	c := engine.Container("main", busybox, "sh", "-c", fmt.Sprintf("seq -w 1 %d | sed 's/$/ %s/'", lines, strings.Repeat("x", lineSize-2-len(strconv.Itoa(lines)))))
	id := n.run(pod, cfg, c)
	path := n.logPath(cfg, c)
	restarts, next, checked := 0, 1, time.Now()
	var rotated []string
	for ended := false; !ended; {
		ended = n.status(id).State == cri.ContainerState_CONTAINER_EXITED
		if info, err := os.Stat(path); err == nil && info.Size() > rotateAt && !ended {
			rotated = append(rotated, fmt.Sprintf("%s.%d", path, len(rotated)))
			must(t, os.Rename(path, rotated[len(rotated)-1]))
			if err := n.reopen(id); err != nil { // the kubelet renames back
				must(t, os.Rename(rotated[len(rotated)-1], path))
				rotated = rotated[:len(rotated)-1]
			}
		}
		if time.Since(checked) > time.Second {
			must(t, n.Kill())
			must(t, n.Start())
			restarts, checked = restarts+1, time.Now()
		}
		time.Sleep(2 * time.Millisecond)
	}
	for _, file := range append(rotated, path) {
		data, err := os.ReadFile(file)
		must(t, err)
		for line := range bytes.Lines(data) {
			_, rest, _ := bytes.Cut(line, []byte(" stdout F "))
			number, _, _ := bytes.Cut(rest, []byte(" "))
			if got, err := strconv.Atoi(string(number)); err != nil || got != next || len(rest) != lineSize {
				t.Fatalf("%s: %.80q where line %d was expected", file, line, next)
			}
			next++
		}
	}
	if next != lines+1 {
		t.Errorf("the log ends with line %d of %d", next-1, lines)
	}
	if restarts < 3 || len(rotated) < 5 {
		t.Errorf("only %d restarts and %d rotations", restarts, len(rotated))
	}
	measured(t, "%d lines of %d bytes, %d rotations, %d restarts of the daemon: each line once, in order", lines, lineSize, len(rotated), restarts)
}

func (n *node) reopen(id string) error {
	_, err := n.Runtime.ReopenContainerLog(n.ctx(), &cri.ReopenContainerLogRequest{ContainerId: id})
	return err
}

var dropNotice = regexp.MustCompile(`stderr F \[evenkeel: (\d+) bytes of log dropped: (.*)\]`)

// TestFullDiskIsMarked: the workload's own counter goes on, and the log tells of the gap once there is room.
func TestFullDiskIsMarked(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("fulldisk")
	must(t, unix.Mount("tmpfs", cfg.LogDirectory, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { unix.Unmount(cfg.LogDirectory, unix.MNT_DETACH) })
	pod := n.runPod(cfg)
	c := engine.Container("main", busybox, "sh", "-c", "trap 'exit 0' TERM; i=0; while :; do echo 0123456789012345678901234567890123456789 $i; i=$((i+1)); echo $i > /tmp/count; test $((i%200)) = 0 && usleep 1000; done")
	id := n.run(pod, cfg, c)
	path := n.logPath(cfg, c)
	count := func() (k int) {
		n.eventually(time.Minute, func() (err error) { // the shell truncates the file before it writes
			k, err = strconv.Atoi(strings.TrimSpace(n.output(id, "cat", "/tmp/count")))
			return err
		})
		return k
	}
	full := 256 << 10 / 60
	n.eventually(20*time.Second, func() error {
		if k := count(); k < 4*full {
			return fmt.Errorf("the workload has counted to %d only", k)
		}
		return nil
	})
	before := count()
	must(t, os.Truncate(path, 0)) // room again
	n.eventually(20*time.Second, func() error {
		if text, _ := readFile(path); !dropNotice.MatchString(text) {
			return fmt.Errorf("the gap is not marked: %.200q", text)
		}
		return nil
	})
	if after := count(); after < before {
		t.Errorf("the workload's counter went from %d to %d", before, after)
	}
	text, _ := readFile(path)
	m := dropNotice.FindStringSubmatch(text)
	if lost, _ := strconv.Atoi(m[1]); lost < before*50-256<<10 || !strings.Contains(m[2], "no space left") {
		t.Errorf("the mark says %q", m[0])
	}
	n.stop(id, 2)
}

func TestLogPolicies(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("policies")
	cfg.Annotations["log.evenkeel.dev/max"] = "128Ki"
	cfg.Annotations["policy.log.evenkeel.dev/dropping"] = "drop"
	cfg.Annotations["rate.log.evenkeel.dev/dropping"] = "50k"
	cfg.Annotations["max.log.evenkeel.dev/dropping"] = "0"
	pod := n.runPod(cfg)
	limited := engine.Container("limited", busybox, "sh", "-c", "yes 0123456789 | head -n 50000")
	dropping := engine.Container("dropping", busybox, "sh", "-c", "yes 0123456789 | head -n 200000")
	begin := time.Now()
	ids := []string{n.run(pod, cfg, limited), n.run(pod, cfg, dropping)}
	for _, id := range ids {
		n.awaitState(id, cri.ContainerState_CONTAINER_EXITED)
	}
	took := time.Since(begin)
	text, err := readFile(n.logPath(cfg, limited))
	must(t, err)
	if len(text) > 128<<10 || len(text) < 127<<10 || !strings.Contains(text, "has reached its limit of 131072 bytes") || !dropNotice.MatchString(text) {
		t.Errorf("a log limited to 128 KiB has %d bytes and ends with %q", len(text), text[max(0, len(text)-200):])
	}
	text, err = readFile(n.logPath(cfg, dropping))
	must(t, err)
	if most := 50_000 * (took.Seconds() + 1.5); float64(len(text)) > most || !strings.Contains(text, "more than 50000 bytes per second") {
		t.Errorf("a log limited to 50 kB per second has %d bytes after %v", len(text), took)
	}
	if left, _ := filepath.Glob(filepath.Join(cfg.LogDirectory, "*")); len(left) != 2 {
		t.Errorf("log directory: %v", left)
	}
}

func TestWrongLogPolicyIsRefused(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("wrong")
	cfg.Annotations["rate.log.evenkeel.dev/main"] = "fast"
	pod := n.runPod(cfg)
	_, err := n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: engine.Sleeper("main", busybox), SandboxConfig: cfg})
	refused(t, err, codes.InvalidArgument, "rate.log.evenkeel.dev/main", `"fast"`)
	n.run(pod, cfg, engine.Sleeper("other", busybox))
}
