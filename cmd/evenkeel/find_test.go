package main

import (
	"errors"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func testWorld() *world {
	pod := func(id, namespace, name, uid string) *cri.PodSandbox {
		return &cri.PodSandbox{Id: id, Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: namespace, Uid: uid}}
	}
	container := func(id, pod, name string, attempt uint32, state cri.ContainerState) *cri.Container {
		return &cri.Container{Id: id, PodSandboxId: pod, State: state, Metadata: &cri.ContainerMetadata{Name: name, Attempt: attempt}}
	}
	running, exited := cri.ContainerState_CONTAINER_RUNNING, cri.ContainerState_CONTAINER_EXITED
	return &world{
		pods: []*cri.PodSandbox{
			pod("aa11", "default", "web", "u1"), pod("aa22", "shop", "web", "u2"), pod("bb33", "default", "db", "u3"), pod("dd77", "default", "job", "u4"),
		},
		containers: []*cri.Container{
			container("cc01", "bb33", "db", 0, exited),
			container("cc02", "bb33", "db", 1, running),
			container("cc03", "bb33", "init", 0, exited),
			container("cc04", "aa11", "server", 0, running),
			container("cc05", "aa11", "probe", 0, running),
			container("cc06", "aa22", "server", 0, running),
			container("ee07", "dd77", "job", 0, exited),
		},
	}
}

func TestFind(t *testing.T) {
	for ref, want := range map[string]string{
		"aa11":        "pod aa11",
		"bb":          "pod bb33",
		"shop/web":    "pod aa22",
		"db":          "pod bb33", // the pod wins over its own container
		"default/db":  "pod bb33",
		"probe":       "container cc05",
		"cc01":        "container cc01",
		"web":         "could be any of these",
		"server":      "could be any of these",
		"aa":          "could be any of these",
		"":            "no pod or container",
		"nope":        "no pod or container",
		"default/job": "pod dd77",
	} {
		found, err := testWorld().find(ref)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = found.kind() + " " + found.id()
		}
		if !strings.Contains(got, want) {
			t.Errorf("find(%q): %s, want %s", ref, got, want)
		}
	}
	// explain looks among pods that are gone only for what nobody is called.
	var missing notFound
	if _, err := testWorld().find("nope"); !errors.As(err, &missing) {
		t.Errorf("%T is not told from an ambiguous name", err)
	}
	_, err := testWorld().find("server")
	if errors.As(err, &missing) {
		t.Error("an ambiguous name counts as unknown")
	}
	for _, candidate := range []string{"container cc04 server of pod default/web", "container cc06 server of pod shop/web"} {
		if !strings.Contains(err.Error(), candidate) {
			t.Errorf("%q is missing in: %v", candidate, err)
		}
	}
}

func TestPick(t *testing.T) {
	for _, c := range []struct{ ref, name, running, all string }{
		{"db", "", "cc02", "cc02,cc03"},
		{"db", "init", "init is exited, not running", "cc03"},
		{"db", "nope", `no container "nope"; it has: db, init`, `no container "nope"`},
		{"default/web", "", "choose one with -c: server, probe", "cc04,cc05"},
		{"default/web", "probe", "cc05", "cc05"},
		{"probe", "server", "does not fit", "does not fit"},
		{"job", "", "job is exited, not running", "ee07"},
	} {
		one, err := testWorld().pickRunning(c.ref, c.name)
		if got := idsOrError([]*cri.Container{one}, err); !strings.Contains(got, c.running) {
			t.Errorf("pickRunning(%q, %q): %s, want %s", c.ref, c.name, got, c.running)
		}
		list, err := testWorld().pick(c.ref, c.name)
		if got := idsOrError(list, err); !strings.Contains(got, c.all) {
			t.Errorf("pick(%q, %q): %s, want %s", c.ref, c.name, got, c.all)
		}
	}
}

func idsOrError(list []*cri.Container, err error) string {
	if err != nil {
		return err.Error()
	}
	var ids []string
	for _, c := range list {
		ids = append(ids, c.Id)
	}
	return strings.Join(ids, ",")
}

func TestContainersNamed(t *testing.T) {
	w := testWorld()
	if all, err := w.containersNamed(nil); err != nil || all != nil {
		t.Errorf("without names: %v, %v", all, err)
	}
	got, err := w.containersNamed([]string{"probe", "bb"})
	if err != nil || len(got) != 5 || !got["cc05"] || !got["cc02"] || got["cc04"] {
		t.Errorf("probe and all of pod bb33: %v, %v", got, err)
	}
	if _, err := w.containersNamed([]string{"probe", "nope"}); err == nil {
		t.Error("nobody is called nope")
	}
}
