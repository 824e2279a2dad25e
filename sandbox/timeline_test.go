package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/effect"
)

var (
	testStep = effect.New("test.step")
	testPart = effect.New("test.part")
	testFact = effect.New("test.fact")
)

func did(ctx context.Context) error {
	return testStep.Do(ctx, func() error {
		time.Sleep(2 * time.Millisecond)
		return testPart.Do(ctx, func() error { return nil })
	})
}

func TestTimelineTellsSteps(t *testing.T) {
	var line timeline
	ctx, whole := effect.WithTrace(t.Context())
	err := line.during(ctx, "RunPodSandbox", testFact, func(ctx context.Context) error {
		return errors.Join(did(ctx), testFact.Do(ctx, func() error { return errors.New("no room") }))
	})
	if err == nil || len(whole.Steps()) != 3 {
		t.Errorf("%v, and the request's own trace has %d steps, want all three", err, len(whole.Steps()))
	}
	got := line.operations(noEffect)
	if len(got) != 1 || got[0].Name != "RunPodSandbox" || got[0].Error != "no room" || got[0].Unfinished {
		t.Fatalf("got %+v", got)
	}
	var names []string
	for _, s := range got[0].Steps {
		names = append(names, s.Name)
	}
	if strings.Join(names, " ") != "test.step test.part test.fact" {
		t.Errorf("steps %v, want them in the order in which they began", names)
	}
	if step, fact := got[0].Steps[0], got[0].Steps[2]; step.Took < Milliseconds(2*time.Millisecond) || fact.At < step.Took || fact.Error != "no room" || got[0].Took < fact.At {
		t.Errorf("times or errors are wrong: %+v", got[0])
	}
}

// A record is written in the middle of the operation that it completes; one read back must not look cut short.
func TestTimelineInARecord(t *testing.T) {
	var line timeline
	ctx, first := line.begin(t.Context(), "RunPodSandbox", testFact)
	did(ctx)
	ctx, second := line.begin(t.Context(), "StopPodSandbox", testPart)
	did(ctx)
	dir := t.TempDir()
	record := podRecord{ID: "1", Config: document[*cri.PodSandboxConfig]{&cri.PodSandboxConfig{}}, Timeline: line.operations(testFact)}
	if err := writeRecord(dir, &record); err != nil {
		t.Fatal(err)
	}
	first(nil)
	second(nil)
	var back podRecord
	if err := readRecord(dir, &back); err != nil {
		t.Fatal(err)
	}
	restored := (&Pods{}).newPod(back)
	if restored.facts().Timeline != nil {
		t.Error("the record in memory holds the timeline a second time")
	}
	got := restored.timeline.operations(noEffect)
	if len(got) != 2 || got[0].Unfinished || !got[1].Unfinished || len(got[0].Steps) != 2 || got[0].Took < Milliseconds(2*time.Millisecond) {
		t.Errorf("read back %+v", got)
	}
	if live := line.operations(noEffect); got[0].Start.Sub(live[0].Start).Abs() > time.Microsecond {
		t.Errorf("start %s became %s", live[0].Start, got[0].Start)
	}
}

func TestTimelineIsBounded(t *testing.T) {
	var line timeline
	for i := range 100 {
		line.during(t.Context(), fmt.Sprint("op", i), testFact, func(ctx context.Context) error {
			for range 100 {
				did2(ctx)
			}
			return errors.New(strings.Repeat("x", 5000))
		})
		line.during(t.Context(), "idle", testFact, func(context.Context) error { return nil })
	}
	got := line.operations(noEffect)
	if len(got) != operationLimit || got[0].Name != "op0" || got[1].Name != fmt.Sprint("op", 101-operationLimit) || got[len(got)-1].Name != "op99" {
		t.Errorf("kept %d operations from %s, %s on", len(got), got[0].Name, got[1].Name)
	}
	if o := got[0]; len(o.Steps) != stepLimit || o.More != 100-stepLimit || len(o.Error) != errorLimit {
		t.Errorf("%d steps and %d more, error of %d bytes", len(o.Steps), o.More, len(o.Error))
	}
}

func did2(ctx context.Context) { testStep.Do(ctx, func() error { return nil }) }

// What a container that could not be made has to tell is told by its pod.
func TestContainerBequeathsItsPast(t *testing.T) {
	pods := &Pods{index: newIndex()}
	pod := pods.newPod(podRecord{ID: "p", Config: document[*cri.PodSandboxConfig]{&cri.PodSandboxConfig{}}})
	pods.index.claimPod(pod)
	c := pods.newContainer(containerRecord{ID: "c", PodID: "p", Config: document[*cri.ContainerConfig]{&cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "main"}}}})
	pods.index.claimContainer(c)
	c.timeline.during(t.Context(), "StartContainer", testFact, did)
	ctx, told := c.timeline.begin(t.Context(), "CreateContainer", testFact)
	did(ctx)
	c.bequeath()
	pods.index.dropContainer(c)
	told(errors.New("no such image"))
	c.bequeath()
	got := pod.history()
	if len(got) != 2 || got[0].Name != "StartContainer" || len(got[0].Steps) > 0 || got[1].Error != "no such image" || len(got[1].Steps) != 2 || got[1].Container != "main" || got[1].ContainerID != "c" {
		t.Errorf("the pod tells %+v", got)
	}
}

func TestGonePodsAreBounded(t *testing.T) {
	pods := &Pods{index: newIndex()}
	for i := range goneLimit + 5 {
		pods.bygone.remember(pods.newPod(podRecord{ID: fmt.Sprint(i), Config: document[*cri.PodSandboxConfig]{&cri.PodSandboxConfig{}}}))
	}
	if got := pods.Gone(); len(got) != goneLimit || got[0].ID != fmt.Sprint(goneLimit+4) || got[0].At.IsZero() {
		t.Errorf("%d pods remembered, the newest is %s", len(got), got[0].ID)
	}
}

func TestMilliseconds(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0", 1500 * time.Microsecond: "1.5", 12345678 * time.Nanosecond: "12.345", time.Hour: "3600000"} {
		data, err := json.Marshal(Milliseconds(d))
		if err != nil || string(data) != want {
			t.Errorf("%s is %s, %v, want %s", d, data, err, want)
		}
		var back Milliseconds
		if err := json.Unmarshal(data, &back); err != nil || time.Duration(back) != d.Truncate(time.Microsecond) {
			t.Errorf("%s came back as %s (%v)", d, time.Duration(back), err)
		}
	}
}
