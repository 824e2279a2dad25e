package runc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// The test binary plays a runtime that misbehaves: RUNC_TEST_PLAY says how.
func TestMain(m *testing.M) {
	if role := os.Getenv("RUNC_TEST_PLAY"); role != "" {
		os.Exit(play(role))
	}
	os.Exit(m.Run())
}

func play(role string) int {
	log := os.Args[slices.Index(os.Args, "--log")+1]
	switch role {
	case "argv":
		json.NewEncoder(os.Stdout).Encode(os.Args[1:])
		return 0
	case "speak":
		f, _ := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		fmt.Fprintln(f, `{"level":"warning","msg":"just saying"}`)
		fmt.Fprintln(f, `{"level":"error","msg":"first"}`)
		fmt.Fprintln(f, `{"level":"error","msg":"the \"real\" reason"}`)
		fmt.Fprintln(f, `{"level":"debug","msg":"bye"}`)
		fmt.Fprintln(os.Stderr, "the real reason, once more, for people")
		return 3
	case "panic":
		fmt.Fprintln(os.Stderr, "panic: oh no")
		return 2
	case "silent":
		return 7
	case "hang":
		time.Sleep(time.Minute)
	case "hang in a child":
		cmd := exec.Command("sleep", "10")
		cmd.Stdout = os.Stdout
		cmd.Run()
	case "leave a child":
		cmd := exec.Command("sleep", "10")
		cmd.Stdout = os.Stdout
		cmd.Start()
		fmt.Println("[]")
	case "help":
		fmt.Println("NAME: runtime - knows no such command")
	}
	return 0
}

func player(t *testing.T, role string) *Runc {
	t.Setenv("RUNC_TEST_PLAY", role)
	return &Runc{Path: os.Args[0], Root: t.TempDir()}
}

func TestArguments(t *testing.T) {
	r := player(t, "argv")
	var out string
	capture := func(f func(*Runc) error) string {
		t.Helper()
		file, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		r.Run = func(cmd *exec.Cmd) error { cmd.Stdout = file; return cmd.Run() }
		if err := f(r); err != nil {
			t.Fatal(err)
		}
		data, _ := os.ReadFile(file.Name())
		var args []string
		if err := json.Unmarshal(data, &args); err != nil {
			t.Fatalf("%v in %q", err, data)
		}
		out = strings.Join(args, " ")
		out = strings.Replace(out, "--root "+r.Root+" --log /proc/self/fd/3 --log-format json ", "", 1)
		return out
	}
	ctx := t.Context()
	for _, test := range []struct {
		want string
		do   func(*Runc) error
	}{
		{"create --bundle /b --pid-file /p id", func(r *Runc) error { return r.Create(ctx, "id", CreateOptions{Bundle: "/b", PIDFile: "/p"}) }},
		{"create --bundle /b --pid-file /p --console-socket /s id", func(r *Runc) error {
			return r.Create(ctx, "id", CreateOptions{Bundle: "/b", PIDFile: "/p", ConsoleSocket: "/s"})
		}},
		{"exec --detach --process /j --pid-file /p id", func(r *Runc) error { return r.Exec(ctx, "id", ExecOptions{ProcessFile: "/j", PIDFile: "/p"}) }},
		{"exec --detach --process /j --pid-file /p --console-socket /s --cgroup sub id", func(r *Runc) error {
			return r.Exec(ctx, "id", ExecOptions{ProcessFile: "/j", PIDFile: "/p", ConsoleSocket: "/s", Cgroup: "sub"})
		}},
		{"start id", func(r *Runc) error { return r.Start(ctx, "id") }},
		{"kill id 15", func(r *Runc) error { return r.Kill(ctx, "id", 15) }},
		{"delete id", func(r *Runc) error { return r.Delete(ctx, "id") }},
		{"update --resources - id", func(r *Runc) error { return r.Update(ctx, "id", []byte("{}")) }},
		{"--systemd-cgroup start id", func(r *Runc) error { s := *r; s.SystemdCgroup = true; return s.Start(ctx, "id") }},
	} {
		if got := capture(test.do); got != test.want {
			t.Errorf("arguments are %q, not %q", got, test.want)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, test := range []struct {
		role, message string
		code          int
	}{
		{"speak", `the "real" reason`, 3},
		{"panic", "panic: oh no", 2},
		{"silent", "ended with code 7 and said nothing", 7},
	} {
		err := player(t, test.role).Start(t.Context(), "id")
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(e.Message, test.message) || e.Code != test.code || e.Op != "start" || e.ID != "id" {
			t.Errorf("%s: %#v", test.role, err)
		}
		if test.role == "speak" && e.Message != test.message {
			t.Errorf("%s: message is %q", test.role, e.Message)
		}
	}
}

func TestMessagesStayOutOfTheContainersOutput(t *testing.T) {
	r := player(t, "speak")
	out, _ := os.Create(filepath.Join(t.TempDir(), "out"))
	r.Create(t.Context(), "id", CreateOptions{IO: IO{Stdout: out}})
	if data, _ := os.ReadFile(out.Name()); len(data) > 0 {
		t.Errorf("stdout holds %q", data)
	}
	if left, _ := os.ReadDir(r.Root); len(left) > 0 {
		t.Errorf("left in the runtime's root: %v", left)
	}
}

func TestRuntimeThatCannotRun(t *testing.T) {
	r := &Runc{Path: "/nonesuch/runc", Root: t.TempDir()}
	err := r.Start(t.Context(), "id")
	var e *Error
	if !errors.As(err, &e) || e.Code != -1 || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "program /nonesuch/runc is missing") {
		t.Errorf("missing program: %v", err)
	}
	if errors.Is(err, ErrNotExist) {
		t.Error("a missing program reads as a missing container")
	}
	r = player(t, "hang")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := r.Delete(ctx, "id"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("runtime that hangs: %v", err)
	}
}

// A script around a runtime may have children that outlive it and hold its output.
func TestChildrenOfARuntime(t *testing.T) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := player(t, "hang in a child").List(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one that hangs: %v", err)
	}
	if _, err := player(t, "leave a child").List(t.Context()); err != nil {
		t.Errorf("one that has answered: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("both took %s", took)
	}
}

func TestFeaturesOfARuntimeWithout(t *testing.T) {
	for _, role := range []string{"silent", "help"} {
		if _, err := player(t, role).Features(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", role, err)
		}
	}
}

// The words of runc as the shim's tests provoke them, and of crun as they stand in its source (container.c, status.c).
func TestErrExecutable(t *testing.T) {
	for message, want := range map[string]int{
		`runc create failed: unable to start container process: error during container init: exec: "nope": executable file not found in $PATH`: 127,
		`unable to start container process: error during container init: exec: "/nope": stat /nope: no such file or directory`:                 127,
		`unable to start container process: exec: "/etc/passwd": permission denied`:                                                            126,
		`unable to start container process: exec: "/etc": is a directory`:                                                                      126,
		`exec failed: unable to start container process: exec: "sh": executable file not found in $PATH`:                                       127,
		`exec /bin/prog: exec format error`:                                                   126,
		`exec /bin/prog: no such file or directory`:                                           127,
		"executable file `nope` not found in $PATH: No such file or directory":                127,
		"executable file `nope` not found: No such file or directory":                         127,
		"open executable: Permission denied":                                                  126,
		"exec container process `/bin/prog`: Exec format error":                               126,
		`unable to start container process: error mounting "/x": no such file or directory`:   0,
		`chdir to cwd ("/nope") set in config.json failed: no such file or directory`:         0,
		`container does not exist`:                                                            0,
		"error during container init: error setting cgroup config for procHooks process: ...": 0,
	} {
		code, ok := ErrExecutable(fmt.Errorf("wrapped: %w", &Error{Op: "create", Message: message}))
		if code != want || ok != (want != 0) {
			t.Errorf("%d, %v for %s", code, ok, message)
		}
	}
	if _, ok := ErrExecutable(errors.New(`exec: "x": permission denied`)); ok {
		t.Error("an error that is not the runtime's")
	}
}

func TestErrNotExist(t *testing.T) {
	for message, want := range map[string]bool{
		"container does not exist": true,
		"container `x` does not exist: error opening file `/run/crun/x/status`: No such file or directory": true,
		"error opening file `/run/crun/x/status`: No such file or directory":                               true,
		"cannot signal: permission denied":                                                                 false,
	} {
		if got := errors.Is(&Error{Op: "kill", Message: message}, ErrNotExist); got != want {
			t.Errorf("%v for %s", got, message)
		}
	}
}

// real is the runc that is shipped.
func real(t *testing.T) *Runc {
	path, _ := filepath.Abs("../../bin/linux-" + runtime.GOARCH + "/runc")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the OCI runtime is missing (run `make build`): %v", err)
	}
	return &Runc{Path: path, Root: filepath.Join(t.TempDir(), "root")}
}

func TestRealRunc(t *testing.T) {
	r, ctx := real(t), t.Context()
	if v, spec, err := r.Version(ctx); err != nil || !strings.HasPrefix(v, "runc version ") || !strings.HasPrefix(spec, "1.") {
		t.Errorf("version is %q, %v", v, err)
	}
	if list, err := r.List(ctx); err != nil || len(list) != 0 {
		t.Errorf("list is %v, %v", list, err)
	}
	var features struct{ OCIVersionMax string }
	if doc, err := r.Features(ctx); err != nil || json.Unmarshal(doc, &features) != nil || features.OCIVersionMax == "" {
		t.Errorf("features are %q, %v", doc, err)
	}
	for name, err := range map[string]error{
		"start": r.Start(ctx, "x"), "kill": r.Kill(ctx, "x", 9), "update": r.Update(ctx, "x", []byte("{}")),
		"exec": r.Exec(ctx, "x", ExecOptions{}), "state": func() error { _, err := r.State(ctx, "x"); return err }(),
	} {
		if !errors.Is(err, ErrNotExist) {
			t.Errorf("%s of no container: %v", name, err)
		}
	}
	if err := r.Delete(ctx, "x"); err != nil {
		t.Errorf("delete of no container: %v", err)
	}
	err := r.Create(ctx, "x", CreateOptions{Bundle: t.TempDir(), PIDFile: "/nonesuch"})
	if e := (*Error)(nil); !errors.As(err, &e) || !strings.Contains(e.Message, "config.json") || errors.Is(err, ErrNotExist) {
		t.Errorf("create without config.json: %v", err)
	}
}

func TestSubCgroupsIn(t *testing.T) {
	for _, test := range []struct {
		help string
		want SubCgroups
	}{
		{"   --cgroup value [ --cgroup value ]   run the process in an (existing) sub-cgroup(s). Format is [<controller>:]<cgroup>.\n", SubCgroups{true, true}},
		{"      --cgroup=PATH          sub-cgroup in the container\n  -d, --detach   controller\n", SubCgroups{Path: true}},
		{"  --detach\n", SubCgroups{}},
		{"", SubCgroups{}},
	} {
		if got := subCgroupsIn(test.help); got != test.want {
			t.Errorf("%q gives %+v", test.help, got)
		}
	}
}
