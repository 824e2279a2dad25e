package integration

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// events subscribes and returns once every later event will come.
func (n *node) events() cri.RuntimeService_GetContainerEventsClient {
	n.t.Helper()
	stream, err := n.Runtime.GetContainerEvents(n.t.Context(), &cri.GetEventsRequest{})
	must(n.t, err)
	_, err = stream.Header()
	must(n.t, err)
	return stream
}

// hear reads until the pod is deleted, and returns what happened to whom.
func hear(t *testing.T, stream cri.RuntimeService_GetContainerEventsClient, pod string) (heard []string, events []*cri.ContainerEventResponse) {
	t.Helper()
	last := int64(0)
	for {
		e, err := stream.Recv()
		must(t, err)
		if e.PodSandboxStatus.GetId() != pod {
			continue
		}
		if e.CreatedAt <= last || e.PodSandboxStatus.GetMetadata().GetUid() == "" {
			t.Errorf("an event without pod or out of time: %v", e)
		}
		last = e.CreatedAt
		what := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_"), "_EVENT"))
		who := "container"
		if e.ContainerId == pod {
			who = "pod"
		}
		heard, events = append(heard, who+" "+what), append(events, e)
		if who == "pod" && what == "deleted" {
			return heard, events
		}
	}
}

func TestEvents(t *testing.T) {
	n := start(t, "builtin")
	stream := n.events()
	pod, id := n.up("events")
	n.stop(id, 5)
	n.remove(id)
	n.stopPod(pod)
	n.removePod(pod)
	heard, events := hear(t, stream, pod)
	want := []string{"pod created", "pod started", "container created", "container started", "container stopped", "container deleted", "pod stopped", "pod deleted"}
	if !slices.Equal(heard, want) {
		t.Fatalf("heard %q", heard)
	}
	if s := events[4].ContainersStatuses; len(s) != 1 || s[0].State != cri.ContainerState_CONTAINER_EXITED || s[0].FinishedAt == 0 {
		t.Errorf("the end of a container is told with %v", s)
	}
	if ip := events[6].PodSandboxStatus.GetNetwork().GetIp(); ip == "" {
		t.Error("a stopped pod is told without the address it had")
	}
}

// TestEventsOfShortLives: a process that ends before anybody heard that it began is started first, always.
func TestEventsOfShortLives(t *testing.T) {
	n := start(t, "builtin")
	stream := n.events()
	cfg := n.Pod("short")
	pod := n.runPod(cfg)
	for i := range 8 {
		id := n.run(pod, cfg, engine.Container(fmt.Sprint("c", i), busybox, "true"))
		n.awaitState(id, cri.ContainerState_CONTAINER_EXITED)
	}
	n.removePod(pod)
	_, events := hear(t, stream, pod)
	lives := map[string][]cri.ContainerEventType{}
	for _, e := range events {
		if e.ContainerId != pod {
			lives[e.ContainerId] = append(lives[e.ContainerId], e.ContainerEventType)
		}
	}
	for id, life := range lives {
		if !slices.Equal(life, []cri.ContainerEventType{0, 1, 2, 3}) {
			t.Errorf("%s: %v", id, life)
		}
	}
	if len(lives) != 8 {
		t.Errorf("heard of %d containers", len(lives))
	}
}

// TestASlowReaderOfEventsIsDropped: it hears so, is counted, and nobody else notices.
func TestASlowReaderOfEventsIsDropped(t *testing.T) {
	n := prepareNode(t, "builtin")
	socket := filepath.Join(n.State, "m.sock")
	n.Config = fmt.Sprintf("[metrics]\naddress = \"unix://%s\"\n", socket)
	must(t, n.Start())
	slow, quick := n.events(), n.events()
	const pods = 300 // 4 events each; 1024 wait for a reader, and some in the connection
	heard := make(chan int)
	go func() {
		count := 0
		defer func() { heard <- count }()
		for count < 4*pods {
			if _, err := quick.Recv(); err != nil {
				return
			}
			count++
		}
	}()
	for i := range pods {
		cfg := n.Pod(fmt.Sprint("e", i))
		cfg.Annotations["example.org/ballast"] = strings.Repeat("x", 4<<10)
		cfg.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
		n.removePod(n.runPod(cfg))
	}
	if count := <-heard; count != 4*pods {
		t.Errorf("the quick reader heard %d of %d events", count, 4*pods)
	}
	for {
		if _, err := slow.Recv(); err != nil {
			if status.Code(err) != codes.ResourceExhausted {
				t.Errorf("the slow reader hears %v", err)
			}
			break
		}
	}
	text := scrape(t, socket)
	for _, want := range []string{"evenkeel_event_readers_dropped_total 1\n", `evenkeel_operations_total{code="OK",method="RunPodSandbox"} 300`, `evenkeel_step_duration_seconds_count{step="pod.shim"} 300`, `evenkeel_pods{state="SANDBOX_READY"} 0`, "evenkeel_image_images 0\n", "evenkeel_log_lost_bytes 0\n", "evenkeel_leftovers_total 0\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics do not say %s", want)
		}
	}
}

// scrape asks for the engine's own metrics.
func scrape(t *testing.T, socket string) string {
	t.Helper()
	client := http.Client{Timeout: engine.Patience(10 * time.Second), Transport: &http.Transport{Dial: func(string, string) (net.Conn, error) { return net.Dial("unix", socket) }}}
	defer client.CloseIdleConnections()
	r, err := client.Get("http://engine/metrics")
	must(t, err)
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	must(t, err)
	return string(text)
}
