package oci

import (
	"encoding/json"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestExecProcess(t *testing.T) {
	_, container, err := readScene(t, "testdata/capabilities_ambient.json").decide(t)
	must(t, err)
	before, err := json.Marshal(container)
	must(t, err)

	process, err := ExecProcess(container, []string{"id", "-G"}, true)
	must(t, err)
	if !process.Terminal || !slices.Equal(process.Args, []string{"id", "-G"}) {
		t.Errorf("got terminal %v, args %q", process.Terminal, process.Args)
	}
	if !slices.Contains(process.Env, "TERM=xterm") {
		t.Errorf("a terminal without TERM: %q", process.Env)
	}
	if process.User.UID != 1000 || process.Cwd != "/srv" || !slices.Equal(process.Capabilities.Ambient, []string{"CAP_NET_BIND_SERVICE"}) {
		t.Errorf("the container's settings are not kept: %+v", process)
	}

	// Nobody's copy may write into the container's document, which serves the next exec too.
	process.Env[0], process.Capabilities.Bounding[0], process.User.AdditionalGids[0], *process.OOMScoreAdj = "X=1", "CAP_BPF", 7, 7
	after, err := json.Marshal(container)
	must(t, err)
	if string(before) != string(after) {
		t.Error("ExecProcess shares memory with the container's document")
	}
}

func TestExecProcessKeepsTheContainersTerm(t *testing.T) {
	container := &specs.Spec{Process: &specs.Process{Env: []string{"TERM=linux"}, Cwd: "/"}}
	process, err := ExecProcess(container, []string{"sh"}, true)
	must(t, err)
	if !slices.Equal(process.Env, []string{"TERM=linux"}) {
		t.Errorf("got %q", process.Env)
	}
}

func TestExecProcessRefuses(t *testing.T) {
	container := &specs.Spec{Process: &specs.Process{Cwd: "/"}}
	for _, command := range [][]string{nil, {"a\x00b"}} {
		if p, err := ExecProcess(container, command, false); err == nil {
			t.Errorf("%q accepted as %q", command, p.Args)
		}
	}
	if _, err := ExecProcess(nil, []string{"sh"}, false); err == nil {
		t.Error("an exec without a container was accepted")
	}
}
