package deptest

import (
	"go/ast"
	"slices"
	"strings"
	"testing"
)

// A ban is a function, or method name with an empty Package, that must not be used, and why.
type ban struct {
	Package string
	Names   []string
	In      []string // rooms where it is banned; none: everywhere
	NotIn   []string // rooms where it may be used
	Why     string
	Except  map[string]string // file, and why it may
}

var bans = []ban{
	{Package: "context", Names: []string{"Background", "TODO"}, NotIn: []string{"cmd", "shim"}, // the shim's roots are its containers
		Why: "deadlines and cancellation pass through; undo detaches with context.WithoutCancel and a limit",
		Except: map[string]string{
			"image/executable_host.go":      "the kernel is asked once for all requests, under a limit of its own",
			"image/open.go":                 "what is in the trash is nobody's request",
			"network/builtin.go":            "Ready is asked without a request, under a limit of its own",
			"network/cni_status.go":         "Ready is asked without a request, under a limit of its own",
			"sandbox/container.go":          "a container is wanted until somebody asks for its end, whoever asked for it",
			"sandbox/container_teardown.go": "a container is watched for as long as it lives",
			"sandbox/pod.go":                "a pod is wanted until somebody asks for its end, whoever asked for it",
			"sandbox/watch.go":              "a shim is watched for as long as it lives",
		}},
	{Package: "time", Names: []string{"Tick", "NewTicker"},
		Why: "an idle engine uses no CPU; wait for the event instead"},
	{Package: "os", Names: []string{"Chdir", "Setenv", "Unsetenv"},
		Why: "every thread shares the working directory and the environment; pass them to the one who needs them",
		Except: map[string]string{
			"shim/serve.go":              "takes Go's own knobs out of its environment before it starts anything",
			"internal/systemd/notify.go": "takes out what the manager said to this process alone, before it starts anything",
		}},
	{Package: "os/exec", Names: []string{"Command"},
		Why: "exec.CommandContext: a program that hangs must not hang its caller"},
	{Package: "path/filepath", Names: []string{"Walk", "WalkDir"}, In: []string{"image", "sandbox", "shim"},
		Why: "trees that images and pods made hold a million files, or a symlink race; count when writing, remove by descriptor",
		Except: map[string]string{
			"sandbox/container_inputs.go": "the host's own device directories",
		}},
	{Package: "os", Names: []string{"ReadDir"}, In: []string{"cri"},
		Why: "the face answers from memory"},
	{Names: []string{"Sync"}, NotIn: []string{"image"},
		Why: "nothing on the path of a pod waits for a disk; only images sync, once per pull"},
	{Package: "golang.org/x/sys/unix", Names: []string{"Fsync", "Fdatasync", "Sync", "Syncfs", "SyncFileRange"}, NotIn: []string{"image"},
		Why: "nothing on the path of a pod waits for a disk; only images sync, once per pull"},
	{Package: "syscall", Names: []string{"Fsync", "Fdatasync", "Sync"},
		Why: "nothing on the path of a pod waits for a disk; only images sync, once per pull"},
	{Package: "fmt", Names: []string{"Print", "Println", "Printf"},
		Why: "rooms return errors; commands write to the writer they were given; the edge logs"},
	{Package: "os", Names: []string{"Exit"}, NotIn: []string{"cmd"},
		Why: "it skips every deferred undo"},
	{Package: "syscall", Names: []string{"Kill"}, NotIn: []string{"shim"},
		Why: "a bare pid may be somebody else's by now; use a pidfd, or kill the cgroup",
		Except: map[string]string{"internal/effect/fault.go": "it kills itself",
			"network/cni_plugin.go": "a child that is not reaped yet, with its process group"}},
	{Package: "golang.org/x/sys/unix", Names: []string{"Kill"}, NotIn: []string{"shim"},
		Why: "a bare pid may be somebody else's by now; use a pidfd, or kill the cgroup",
		Except: map[string]string{
			"internal/cgroup/kill.go":    "for kernels without cgroup.kill: the cgroup is frozen while its pids are read and killed",
			"internal/namespace/user.go": "a child that is not reaped yet",
		}},
	{Package: "net/http", Names: []string{"Get", "Post", "Head", "DefaultClient", "DefaultServeMux", "Handle", "HandleFunc"},
		Why: "the default client waits for ever and the default mux is everybody's"},
	{Package: "runtime", Names: []string{"GC"},
		Why: "memory is saved by not allocating it"},
}

func TestBannedCalls(t *testing.T) {
	for _, s := range sources(t) {
		ast.Inspect(s.File, func(n ast.Node) bool {
			if selector, ok := n.(*ast.SelectorExpr); ok {
				s.check(t, selector)
			}
			return true
		})
	}
}

func (s *source) check(t *testing.T, selector *ast.SelectorExpr) {
	left, named := selector.X.(*ast.Ident)
	pkg := ""
	if named {
		pkg = s.imports[left.Name]
	}
	for _, b := range bans {
		if b.Package != pkg || !slices.Contains(b.Names, selector.Sel.Name) || !b.reaches(s) {
			continue
		}
		if _, excepted := b.Except[s.Path]; !excepted {
			t.Errorf("%s: %s.%s is banned here: %s", s.line(selector), pkg, selector.Sel.Name, b.Why)
		}
	}
}

func (b ban) reaches(s *source) bool {
	return (len(b.In) == 0 || s.in(b.In...)) && !s.in(b.NotIn...)
}

// Parts are joined in main, where a reader can see it. A panic in a request ends every pod's daemon.
func TestNoInitAndNoPanic(t *testing.T) {
	mayPanic := map[string]string{
		"internal/effect/effect.go": "two effects of one name are found when the program starts",
	}
	for _, s := range sources(t) {
		for _, d := range s.File.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: init() joins parts where nobody looks; do it in main", s.line(f))
			}
		}
		ast.Inspect(s.File, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if name, ok := call.Fun.(*ast.Ident); ok && name.Name == "panic" && mayPanic[s.Path] == "" {
				t.Errorf("%s: panic ends the daemon of every pod on the node; return an error", s.line(call))
			}
			return true
		})
	}
}

// The median function of this code is short; this keeps the tail in.
func TestFunctionsStayShort(t *testing.T) {
	const most = 65
	for _, s := range sources(t) {
		for _, d := range s.File.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			if n := s.Set.Position(f.End()).Line - s.Set.Position(f.Pos()).Line + 1; n > most {
				t.Errorf("%s: %s has %d lines, more than %d: name its parts", s.line(f), f.Name.Name, n, most)
			}
		}
	}
}

// A mutex names what it guards: the guarded fields stand right below it, after no blank line.
func TestMutexesAreFollowedByWhatTheyGuard(t *testing.T) {
	for _, s := range sources(t) {
		ast.Inspect(s.File, func(n ast.Node) bool {
			if st, ok := n.(*ast.StructType); ok {
				s.checkMutex(t, st)
			}
			return true
		})
	}
}

func (s *source) checkMutex(t *testing.T, st *ast.StructType) {
	for i, field := range st.Fields.List {
		selector, ok := field.Type.(*ast.SelectorExpr)
		if !ok || !strings.HasSuffix(selector.Sel.Name, "Mutex") {
			continue
		}
		line := s.Set.Position(field.End()).Line
		last := i+1 == len(st.Fields.List)
		if last || s.Set.Position(st.Fields.List[i+1].Pos()).Line > line+1 && st.Fields.List[i+1].Doc == nil {
			if field.Comment == nil && field.Doc == nil {
				t.Errorf("%s: a mutex stands right above what it guards, or says in a comment what that is", s.line(field))
			}
		}
	}
}
