package deptest

import (
	"path"
	"slices"
	"strings"
	"testing"
)

// arrows says which rooms a room may import; all of them may import internal/*, unless said otherwise here. They
// point one way, so that a room can be understood, and tested, with what lies below it alone.
var arrows = map[string]struct {
	to  []string
	why string
}{
	"cmd/evenkeel":      {[]string{"cri", "cri/operator", "cri/streaming", "sandbox", "image", "network", "nri", "oci", "oci/runc", "shim", "tracing"}, "main joins the parts, visibly"},
	"cmd/evenkeel-shim": {[]string{"shim"}, "the shim's main only starts the shim"},
	"cri":               {[]string{"cri/operator", "cri/streaming", "sandbox", "image"}, "the gRPC face checks, calls one method and answers; it knows nothing of how pods are made"},
	"cri/operator":      {nil, "the operator's messages are nouns of their own"},
	"cri/streaming":     {[]string{"sandbox"}, "streams end in containers, nowhere else"},
	"sandbox":           {[]string{"image", "network", "oci", "oci/runc", "shim"}, "the life of pods owns all state about them and calls down"},
	"nri":               {[]string{"sandbox"}, "plugins see pods and containers and change what becomes of them; the life of pods knows nothing of their protocol"},
	"tracing":           {nil, "it sees effects and requests, and knows nothing of what they are"},
	"shim":              {[]string{"oci/runc"}, "one shim runs per pod: it starts the runtime and nothing else"},
	"image":             {[]string{"image/layer"}, "images know nothing of pods"},
	"image/layer":       {nil, "unpacking knows nothing of registries"},
	"network":           {nil, "providers know a pod by its id and its namespace file"},
	"oci":               {nil, "a pure function from a request to a runtime-spec; golden files test it"},
	"oci/runc":          {nil, "shared with the shim, so it stays as small as the shim must"},
}

func TestRoomsImportOneWay(t *testing.T) {
	for _, r := range rooms(t) {
		rule, known := arrows[r.Path]
		switch {
		case strings.HasPrefix(r.Path, "integration"), strings.HasPrefix(r.Path, "examples"):
			continue // they are built from outside, as a user would
		case strings.HasPrefix(r.Path, "internal/"):
			rule.why = "internal rooms are named after one thing and stand below every other room"
		case !known:
			t.Errorf("%s is a new room: draw its arrows in internal/deptest and docs/ARCHITECTURE.md", r.Path)
			continue
		}
		for _, to := range ours(r.Imports) {
			if !strings.HasPrefix(to, "internal/") && !slices.Contains(rule.to, to) {
				t.Errorf("%s imports %s: %s", r.Path, to, rule.why)
			}
		}
	}
}

func ours(imports []string) (list []string) {
	for _, i := range imports {
		if rest, ok := strings.CutPrefix(i, module+"/"); ok {
			list = append(list, rest)
		}
	}
	return list
}

// owners says which rooms may import a module directly; everything below the path is meant.
var owners = []struct {
	path string
	by   []string
	why  string
}{
	{"google.golang.org/grpc", []string{"cri", "cri/operator", "cmd/evenkeel"}, "CRI messages travel down as nouns; only the face speaks gRPC"},
	{"github.com/prometheus", []string{"cri"}, "what happened is counted where it is logged"},
	{"go.opentelemetry.io", []string{"tracing"}, "rooms name their effects, and one of them turns names into spans"},
	{"k8s.io/cri-streaming", []string{"cri/streaming"}, "SPDY and WebSocket end at the streaming server"},
	{"k8s.io/api", []string{"cmd/evenkeel"}, "Kubernetes manifests are a tool's input, not the engine's"},
	{"k8s.io/client-go", []string{"cmd/evenkeel"}, "the engine is no client of a cluster"},
	{"github.com/spf13/cobra", []string{"cmd/evenkeel"}, "flags are read in main"},
	{"oras.land/oras-go", []string{"image"}, "image is the only room that talks to registries"},
	{"github.com/klauspost/compress", []string{"image", "image/layer"}, "only layers are compressed"},
	{"github.com/containerd/nri", []string{"nri"}, "plugins are asked in one place, which knows their protocol and bounds their answers"},
	{"github.com/containernetworking", []string{"network"}, "plugins are called from one place, so that each ADD has its DEL"},
	{"github.com/google/nftables", []string{"network", "internal/leftovers"}, "rules are made where they are undone"},
	{"github.com/vishvananda/netlink", []string{"network", "internal/leftovers", "internal/namespace"}, "devices are made where they are undone"},
	{"github.com/google/go-containerregistry", nil, "a registry in process is for tests"},
	{"k8s.io/cri-client", []string{"cmd/evenkeel"}, "the engine does not read its own logs"},
	{"testing", nil, "tests do not ship"},
	{"log", nil, "log/slog, with ids, at the edge"},
	{"math/rand", nil, "an id that can be guessed can be taken; crypto/rand costs nothing here"},
	{module + "/internal/leftovers", []string{"cmd/evenkeel"}, "the search for leftovers must not share code with what it accuses"},
}

func TestModulesHaveOwners(t *testing.T) {
	for _, r := range rooms(t) {
		if strings.HasPrefix(r.Path, "integration") || strings.HasPrefix(r.Path, "examples") {
			continue
		}
		for _, i := range r.Imports {
			for _, o := range owners {
				exact := o.path == "log" || o.path == "testing" || o.path == "math/rand"
				if i != o.path && (exact || !strings.HasPrefix(i, o.path+"/")) {
					continue
				}
				if !slices.Contains(o.by, r.Path) {
					t.Errorf("%s imports %s: %s", r.Path, i, o.why)
				}
			}
		}
	}
}

// closures bounds everything a package links, not only what it names.
var closures = []struct {
	room    string
	allowed []string // modules beside the standard library
	never   []string // of the standard library
	why     string
}{
	{"cmd/evenkeel-shim", []string{"golang.org/x/sys"}, []string{"net/http", "crypto/tls", "encoding/xml", "text/template", "go/ast"},
		"one shim runs per pod: its memory is paid a hundred times on a full node"},
	{"oci/runc", []string{"golang.org/x/sys"}, []string{"net/http"}, "the shim links it"},
	{"internal/atomicfile", nil, nil, "the shim links it"},
	{"internal/hostpath", []string{"golang.org/x/sys"}, []string{"net/http"}, "the shim links it"},
	{"internal/effect", nil, nil, "every room links it, and a fault must not depend on what it breaks"},
}

func TestClosures(t *testing.T) {
	for _, c := range closures {
		for _, p := range goList(t, "-deps", "./"+c.room) {
			if p.Standard {
				if slices.Contains(c.never, p.ImportPath) {
					t.Errorf("%s links %s: %s", c.room, p.ImportPath, c.why)
				}
				continue
			}
			allowed := strings.HasPrefix(p.ImportPath, module+"/")
			for _, a := range c.allowed {
				allowed = allowed || strings.HasPrefix(p.ImportPath, a+"/")
			}
			if !allowed {
				t.Errorf("%s links %s: %s", c.room, p.ImportPath, c.why)
			}
		}
	}
}

// The oci room decides and does not act: its results are compared with golden files, and nothing it does needs undoing.
func TestOCIRoomIsPure(t *testing.T) {
	for _, r := range rooms(t) {
		if r.Path != "oci" {
			continue
		}
		for _, i := range r.Imports {
			switch i {
			case "os", "os/exec", "net", "net/http", "io/ioutil", "time":
				t.Errorf("oci imports %s: it turns a request into a runtime-spec without touching the world; pass facts in", i)
			}
		}
	}
}

func TestRoomsAreNamedAfterTheirThing(t *testing.T) {
	for _, r := range rooms(t) {
		switch path.Base(r.Path) {
		case "util", "utils", "common", "helper", "helpers", "types", "misc", "base":
			t.Errorf("%s: a room named after nothing collects everything; name it after its thing", r.Path)
		}
	}
}
