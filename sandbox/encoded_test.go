package sandbox

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// crowd is as many containers, each in a pod of its own, as the kubelet would label them.
func crowd(count int) *Containers {
	p := &Pods{index: newIndex()}
	for i := range count {
		id := fmt.Sprintf("%064x", i)
		made := time.Unix(int64(i*7919%count), 0)
		labels := map[string]string{
			"io.kubernetes.container.name": "main", "io.kubernetes.pod.name": "pod-" + id[56:], "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": id[:36],
		}
		p.index.claimPod(p.newPod(podRecord{ID: id, CreatedAt: made, ReadyAt: made, Config: document[*cri.PodSandboxConfig]{&cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: "pod-" + id[56:], Namespace: "default", Uid: id[:36]}, Labels: labels,
		}}}))
		p.index.claimContainer(p.newContainer(containerRecord{
			ID: id, PodID: id, CreatedAt: made, ImageID: "sha256:" + id, ImageRef: "registry.example/x@sha256:" + id,
			Config: document[*cri.ContainerConfig]{&cri.ContainerConfig{
				Metadata: &cri.ContainerMetadata{Name: "main"}, Image: &cri.ImageSpec{Image: "registry.example/x"}, Labels: labels,
				Annotations: map[string]string{
					"io.kubernetes.container.hash": "12345678", "io.kubernetes.container.restartCount": "0",
					"io.kubernetes.container.terminationMessagePath":   "/dev/termination-log",
					"io.kubernetes.container.terminationMessagePolicy": "File", "io.kubernetes.pod.terminationGracePeriod": "30",
				},
			}},
		}))
	}
	return &Containers{p}
}

// What goes over the wire is the list, whatever has changed since it was encoded before.
func TestEncodedIsTheList(t *testing.T) {
	all := crowd(5)
	check := func(when string, f *cri.ContainerFilter, count int) {
		t.Helper()
		wire, err := all.Encoded(f)
		got, want := &cri.ListContainersResponse{}, &cri.ListContainersResponse{Containers: all.List(f)}
		if err != nil || proto.Unmarshal(wire, got) != nil || !proto.Equal(got, want) || len(got.Containers) != count {
			t.Errorf("%s, containers: %v\nwant %v, %v", when, got, want, err)
		}
		wire, err = all.pods.Encoded(nil)
		gotPods, wantPods := &cri.ListPodSandboxResponse{}, &cri.ListPodSandboxResponse{Items: all.pods.List(nil)}
		if err != nil || proto.Unmarshal(wire, gotPods) != nil || !proto.Equal(gotPods, wantPods) {
			t.Errorf("%s, pods: %v\nwant %v, %v", when, gotPods, wantPods, err)
		}
	}
	check("at first", nil, 5)
	check("unchanged", nil, 5)
	c, _ := all.pods.index.container(fmt.Sprintf("%064x", 3))
	p, _ := all.pods.index.pod(c.id)
	running := *c.facts()
	running.StartedAt = time.Unix(9, 0)
	c.swap(&running)
	check("one runs", nil, 5)
	check("those that run", &cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}, 1)
	c.silent.Store(true)
	check("its shim is silent", nil, 5)
	c.silent.Store(false)
	check("its shim answers again", nil, 5)
	stopped := *p.facts()
	stopped.StoppingAt = time.Unix(10, 0)
	p.swap(&stopped)
	check("a pod stops", nil, 5)
	c.forget()
	check("one is gone", nil, 4)
	check("none", &cri.ContainerFilter{Id: "f"}, 0)
}

// A second list of the same containers does not encode them again: the fewest allocations there could be, not 37 each.
func TestEncodedListsAllocateLittle(t *testing.T) {
	all := crowd(1000)
	if _, err := all.Encoded(nil); err != nil {
		t.Fatal(err)
	}
	if got := testing.AllocsPerRun(10, func() { all.Encoded(nil) }); got > 50 {
		t.Errorf("a list of 1000 containers takes %g allocations", got)
	}
}

func BenchmarkListOfThousand(b *testing.B) {
	all := crowd(1000)
	b.Run("encoded", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			wire, _ := all.Encoded(nil)
			resp := &cri.ListContainersResponse{}
			resp.ProtoReflect().SetUnknown(wire)
			proto.Marshal(resp)
		}
	})
	b.Run("anew", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			proto.Marshal(&cri.ListContainersResponse{Containers: all.List(nil)})
		}
	})
}
