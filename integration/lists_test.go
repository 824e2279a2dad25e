package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// TestListsWithAThousandContainersWhileCreatesHang: lists are answered from memory, whatever hangs beside them.
func TestListsWithAThousandContainersWhileCreatesHang(t *testing.T) {
	n := prepareNode(t, "cni")
	release := hangingNetwork(t, n)
	must(t, n.Start())
	n.pull(busybox)
	cfg := n.Pod("crowd")
	cfg.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	pod := n.runPod(cfg)
	id := n.run(pod, cfg, engine.Container("first", busybox, "true"))
	n.awaitState(id, cri.ContainerState_CONTAINER_EXITED)
	n.eventually(5*time.Second, func() error { return releasedRecord(n, id) })
	must(t, n.Kill())
	const count = 1000
	multiply(t, n, id, count-1)
	must(t, n.Start())

	quietHalf, quiet := listTimes(t, n, count)
	var hanging sync.WaitGroup
	for i := range 20 {
		hanging.Go(func() {
			if _, err := n.Runtime.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.Pod(fmt.Sprint("hanging", i))}); err == nil {
				t.Errorf("pod %d came up without a network", i)
			}
		})
	}
	n.eventually(10*time.Second, func() error {
		if started, _ := filepath.Glob(filepath.Join(n.Base, "adding.*")); len(started) < 20 {
			return fmt.Errorf("%d creates hang", len(started))
		}
		return nil
	})
	spent := n.cpuTime()
	half, most := listTimes(t, n, count)
	measured(t, "ListContainers with 1000 containers while 20 creates hang: p50 %s, p99 %s; without them %s, %s; %s of the engine's CPU a call",
		half, most, quietHalf, quiet, (n.cpuTime()-spent)/(listRounds*listCalls))
	// A machine that is busy otherwise makes both slow; what hangs must not make it worse.
	if limit := max(engine.Patience(5*time.Millisecond), 2*quiet); most > limit {
		t.Errorf("p99 is %s, more than %s", most, limit)
	}
	checkStreams(t, n, count)
	release()
	hanging.Wait()
}

const listRounds, listCalls = 5, 200

// listTimes lists all containers in several rounds and returns the median and the 99th percentile of the best: what makes a
// list wait for a create makes it wait in each, and what else the machine does comes and goes. An answer is not decoded within
// its time, which is the client's own business.
func listTimes(t *testing.T, n *node, count int) (p50, p99 time.Duration) {
	t.Helper()
	conn, err := engine.Dial(n.Socket())
	must(t, err)
	defer conn.Close()
	for range listRounds {
		half, most := listRound(t, n, conn, count)
		if p99 == 0 || most < p99 {
			p50, p99 = half, most
		}
	}
	return p50, p99
}

func listRound(t *testing.T, n *node, conn *grpc.ClientConn, count int) (p50, p99 time.Duration) {
	t.Helper()
	took := make([]time.Duration, listCalls)
	for i := range took {
		var answer undecoded
		begun := time.Now()
		err := conn.Invoke(n.ctx(), cri.RuntimeService_ListContainers_FullMethodName, &answer, &answer, grpc.ForceCodecV2(undecodedCodec{}))
		took[i] = time.Since(begun)
		r := &cri.ListContainersResponse{}
		if err != nil || proto.Unmarshal(answer, r) != nil || len(r.Containers) != count {
			t.Fatalf("%d containers, %v", len(r.GetContainers()), err)
		}
	}
	slices.Sort(took)
	return took[listCalls/2], took[listCalls*99/100-1]
}

// cpuTime is what the daemon has used since it started, in the clock ticks of a hundredth of a second that proc_pid_stat(5) counts.
func (n *node) cpuTime() time.Duration {
	n.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.PID()))
	must(n.t, err)
	_, rest, _ := strings.Cut(string(data), ") ")
	var user, system int
	fields := strings.Fields(rest)
	fmt.Sscan(fields[11], &user)
	fmt.Sscan(fields[12], &system)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// undecoded is a message as it came over the wire; as a request it is an empty one.
type undecoded []byte

type undecodedCodec struct{}

func (undecodedCodec) Name() string                         { return "proto" }
func (undecodedCodec) Marshal(any) (mem.BufferSlice, error) { return nil, nil }
func (undecodedCodec) Unmarshal(data mem.BufferSlice, to any) error {
	*to.(*undecoded) = data.Materialize()
	return nil
}

// hangingNetwork is a CNI plugin that does not come back from ADD before release is called, and then fails.
func hangingNetwork(t *testing.T, n *node) (release func()) {
	t.Helper()
	n.CNIBin = filepath.Join(n.Base, "cni")
	must(t, os.Mkdir(n.CNIBin, 0o755))
	gate := filepath.Join(n.Base, "gate") // whoever opens it to read waits for a writer, and costs nothing meanwhile
	must(t, syscall.Mkfifo(gate, 0o600))
	script := fmt.Sprintf(`#!/bin/sh
cat > /dev/null
[ "$CNI_COMMAND" = ADD ] || exit 0
: > %[1]s/adding.$CNI_CONTAINERID
read answer < %[2]s
echo '{"cniVersion": "1.0.0", "code": 100, "msg": "it hung, and now it fails"}'
exit 1
`, n.Base, gate)
	must(t, os.WriteFile(filepath.Join(n.CNIBin, "hang"), []byte(script), 0o755))
	n.Conflist = `{"cniVersion": "1.0.0", "name": "hang", "plugins": [{"type": "hang"}]}`
	release = sync.OnceFunc(func() {
		if f, err := os.OpenFile(gate, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
			f.Close()
		}
	})
	t.Cleanup(release)
	return release
}

// releasedRecord waits for the last thing that is written about an ended container.
func releasedRecord(n *node, id string) error {
	data, err := os.ReadFile(filepath.Join(n.Root(), "containers", id, "record"))
	if err == nil && !strings.Contains(string(data), `"Released":true`) {
		err = fmt.Errorf("container %s still holds something", id)
	}
	return err
}

// multiply writes the record of an ended container as often as asked, each with an id and a name of its own.
func multiply(t *testing.T, n *node, id string, times int) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(n.Root(), "containers", id, "record"))
	must(t, err)
	head, body, _ := strings.Cut(string(data), "\n")
	format, _, _ := strings.Cut(head, " ")
	for i := range times {
		var record map[string]any
		must(t, json.Unmarshal([]byte(body), &record))
		sum := sha256.Sum256([]byte(fmt.Sprint(id, i)))
		copied := hex.EncodeToString(sum[:])
		record["ID"] = copied
		record["Config"].(map[string]any)["metadata"].(map[string]any)["name"] = fmt.Sprint("copy", i)
		next, err := json.Marshal(record)
		must(t, err)
		check := sha256.Sum256(next)
		dir := filepath.Join(n.Root(), "containers", copied)
		must(t, os.Mkdir(dir, 0o700))
		must(t, os.WriteFile(filepath.Join(dir, "record"), append([]byte(format+" "+hex.EncodeToString(check[:])+"\n"), next...), 0o600))
	}
}

// checkStreams: a stream gives each item once, in several messages where there are many.
func checkStreams(t *testing.T, n *node, count int) {
	t.Helper()
	stream, err := n.Runtime.StreamContainers(n.ctx(), &cri.StreamContainersRequest{})
	must(t, err)
	seen, messages := map[string]bool{}, 0
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			break
		}
		must(t, err)
		messages++
		for _, c := range r.Containers {
			if seen[c.Id] {
				t.Errorf("%s came twice", c.Id)
			}
			seen[c.Id] = true
		}
	}
	if len(seen) != count || messages < 2 {
		t.Errorf("%d containers in %d messages", len(seen), messages)
	}
}
