package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

func readFile(path string) (string, error) {
	data, err := os.ReadFile(path)
	return string(data), err
}

func TestLogRecords(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("records")
	pod := n.runPod(cfg)
	c := engine.Container("main", busybox, "sh", "-c",
		`echo one; echo two >&2; echo; printf 'no newline'; sleep 0.2; printf ' at all\n'; head -c 40000 /dev/zero | tr '\0' x; echo; printf last`)
	id := n.run(pod, cfg, c)
	n.awaitState(id, cri.ContainerState_CONTAINER_EXITED)
	text := map[string]string{}
	for _, l := range n.log(n.logPath(cfg, c)) {
		if len(l.Text) > 16<<10 {
			t.Errorf("a record has %d bytes, more than 16 KiB", len(l.Text))
		}
		text[l.Stream] += l.Text
		if l.Tag == "F" {
			text[l.Stream] += "\n"
		}
	}
	want := "one\n\nno newline at all\n" + strings.Repeat("x", 40000) + "\nlast"
	if got := text["stdout"]; strings.TrimSuffix(got, "\n") != want {
		t.Errorf("stdout has %d bytes, want %d: %.60q", len(got), len(want), got)
	}
	if text["stderr"] != "two\n" {
		t.Errorf("stderr %q", text["stderr"])
	}
}

// TestLogsAreExactAcrossRestartsAndRotation is guarantee 5: the daemon is never in a log's path.
func TestLogsAreExactAcrossRestartsAndRotation(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("exact")
	pod := n.runPod(cfg)
	c := engine.Container("main", busybox, "sh", "-c", `trap 'exit 0' TERM; i=0; while :; do echo $i; i=$((i+1)); test $((i%100)) = 0 && usleep 10000; done`)
	id := n.run(pod, cfg, c)
	path := n.logPath(cfg, c)
	var whole strings.Builder
	rotate := func(k int) {
		old := fmt.Sprintf("%s.%d", path, k)
		must(t, os.Rename(path, old))
		_, err := n.Runtime.ReopenContainerLog(n.ctx(), &cri.ReopenContainerLogRequest{ContainerId: id})
		must(t, err)
		data, err := readFile(old)
		must(t, err)
		whole.WriteString(data)
	}
	for k := range 5 {
		time.Sleep(100 * time.Millisecond)
		must(t, n.Kill())
		time.Sleep(100 * time.Millisecond)
		must(t, n.Start())
		rotate(k)
	}
	n.stop(id, 5)
	data, err := readFile(path)
	must(t, err)
	whole.WriteString(data)
	must(t, os.WriteFile(path+".whole", []byte(whole.String()), 0o644))
	n.exactCount(path+".whole", 1000)
}

// TestUnwritableLogStopsNobody: a log that cannot be written never stops the workload.
func TestUnwritableLogStopsNobody(t *testing.T) {
	n := start(t, "builtin")
	cfg := n.Pod("unwritable")
	pod := n.runPod(cfg)
	c := engine.Container("main", busybox, "sh", "-c", "yes 01234567890123456789 | head -n 200000; echo done > /tmp/done; sleep 1000")
	must(t, os.Symlink("/dev/full", n.logPath(cfg, c)))
	id := n.create(pod, cfg, c)
	n.startContainer(id)
	n.eventually(20*time.Second, func() error {
		r, err := n.Runtime.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"cat", "/tmp/done"}, Timeout: engine.Seconds(5)})
		if err != nil || r.ExitCode != 0 {
			return fmt.Errorf("the workload waits for its log: %v %v", r, err)
		}
		return nil
	})
}
