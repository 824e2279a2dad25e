package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// TestRuntimeHandlers configures a second runtime, one that is missing, one that is no runtime, and one that has no
// features command, as crun before 1.10.
func TestRuntimeHandlers(t *testing.T) {
	n := prepareNode(t, "builtin")
	plain := filepath.Join(n.Base, "plain")
	runc := filepath.Join(n.Bin, "runc")
	must(t, os.WriteFile(plain, []byte(fmt.Sprintf("#!/bin/sh\nfor a; do [ \"$a\" != features ] || { echo 'unknown command features' >&2; exit 1; }; done\n"+
		"[ \"$7\" != --version ] || { printf 'plain version 1\\ncommit: x\\nspec: 1.0.0\\n'; exit; }\nexec %s \"$@\"\n", runc)), 0o755))
	n.Config = fmt.Sprintf("[runtimes.runc]\n[runtimes.second]\npath = %q\n[runtimes.plain]\npath = %q\n[runtimes.missing]\npath = \"/nowhere/kata\"\n[runtimes.liar]\npath = \"/bin/false\"\n", runc, plain)
	must(t, n.Start())
	n.pull(busybox)

	status, err := n.Runtime.Status(n.ctx(), &cri.StatusRequest{})
	must(t, err)
	features := map[string]*cri.RuntimeHandlerFeatures{}
	for _, h := range status.RuntimeHandlers {
		features[h.Name] = h.Features
	}
	for name, able := range map[string]bool{"": true, "runc": true, "second": true, "plain": false} {
		if f := features[name]; f == nil || f.UserNamespaces != able || f.RecursiveReadOnlyMounts != able {
			t.Errorf("handler %q has features %v, want %v", name, f, able)
		}
	}
	if len(features) != 4 {
		t.Errorf("handlers %v are listed, want those that work", features)
	}

	for name, want := range map[string]string{"second": "1.3.0", "plain": "1.0.0"} {
		cfg := n.Pod("on-" + name)
		r, err := n.Runtime.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: cfg, RuntimeHandler: name})
		must(t, err)
		id := n.run(r.PodSandboxId, cfg, engine.Sleeper("main", busybox))
		n.wantOutput(id, "here", "echo here")
		var info struct{ RuntimeSpec struct{ OCIVersion string } }
		n.info(id, &info)
		if got := info.RuntimeSpec.OCIVersion; got != want {
			t.Errorf("handler %s was given a document of version %s, want %s", name, got, want)
		}
		if entries, err := os.ReadDir(filepath.Join(n.State, name)); err != nil || !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == id }) {
			t.Errorf("handler %s does not keep its container in a directory of its own: %v %v", name, entries, err)
		}
		if s := n.podStatus(r.PodSandboxId); s.RuntimeHandler != name {
			t.Errorf("the status names handler %q", s.RuntimeHandler)
		}
	}

	for name, words := range map[string][]string{
		"missing": {"missing", "/nowhere/kata"}, "liar": {"liar", "/bin/false"}, "unheard": {"unheard", `"second"`},
	} {
		_, err := n.Runtime.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.Pod("refused"), RuntimeHandler: name})
		refused(t, err, codes.InvalidArgument, words...)
	}
	_, err = n.Runtime.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: n.usernsPod("mapped"), RuntimeHandler: "plain"})
	refused(t, err, codes.Unimplemented, "userns_options", `"plain"`)
}
