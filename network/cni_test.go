package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
)

const capable = `"capabilities":{"portMappings":true,"bandwidth":true,"dns":true,"ipRanges":true,"mac":true,"io.kubernetes.cri.pod-annotations":true}`

func fakePod() Pod {
	return Pod{ID: randomID(), Namespace: "kube-system", Name: "dns", UID: "u-1", NetNS: "/proc/self/ns/net"}
}

func TestCNICallsAndArguments(t *testing.T) {
	s := newStage(t, "player1", "player2")
	s.list("10-a.conflist", "green", "1.1.0", `"type":"player1",`+capable, `"type":"player2"`)
	c := s.cni(t)
	if err := c.SetPodCIDR("10.1.0.0/16,fd00::/64"); err != nil {
		t.Fatal(err)
	}
	pod := fakePod()
	pod.Ports = []Port{{Protocol: "UDP", HostPort: 53, ContainerPort: 5353, HostIP: netip.MustParseAddr("127.0.0.1")}, {ContainerPort: 9}}
	pod.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1G", "network.evenkeel.dev/mac": "02-00-00-00-0A-01"}
	pod.DNS = DNS{Servers: []string{"1.2.3.4"}}
	got := attach(t, c, pod)
	want := Result{IPs: []netip.Addr{netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("fd00::9"), netip.MustParseAddr("10.0.1.9")},
		Interface: "eth0", DNS: DNS{Servers: []string{"10.0.0.53"}, Searches: []string{"example.org"}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	calls := s.calls()
	if len(calls) != 2 || calls[0].Plugin != "player1" || calls[1].Plugin != "player2" {
		t.Fatalf("calls: %v", calls)
	}
	if want := "IgnoreUnknown=1;K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns;K8S_POD_INFRA_CONTAINER_ID=" + pod.ID + ";K8S_POD_UID=u-1"; calls[0].Args != want {
		t.Errorf("CNI_ARGS %s\nwant     %s", calls[0].Args, want)
	}
	wantRuntime := `{"bandwidth":{"egressBurst":100000000,"egressRate":1000000000,"ingressBurst":1000000,"ingressRate":10000000},` +
		`"dns":{"options":null,"searches":null,"servers":["1.2.3.4"]},` +
		`"io.kubernetes.cri.pod-annotations":{"kubernetes.io/egress-bandwidth":"1G","kubernetes.io/ingress-bandwidth":"10M","network.evenkeel.dev/mac":"02-00-00-00-0A-01"},` +
		`"ipRanges":[[{"subnet":"10.1.0.0/16"}],[{"subnet":"fd00::/64"}]],"mac":"02:00:00:00:0a:01",` +
		`"portMappings":[{"containerPort":5353,"hostIP":"127.0.0.1","hostPort":53,"protocol":"udp"}]}`
	if got := runtimeConfig(calls[0]); got != wantRuntime {
		t.Errorf("runtimeConfig\n%s\nwant\n%s", got, wantRuntime)
	}
	if got := runtimeConfig(calls[1]); got != "null" {
		t.Errorf("a plugin without capabilities got %s", got)
	}

	s.verbs()
	if again := attach(t, c, pod); !reflect.DeepEqual(again, want) {
		t.Errorf("again: %+v", again)
	}
	if v := s.verbs(); v != "" {
		t.Errorf("attaching an attached pod called %s", v)
	}
	// DEL uses what ADD used, whatever the configuration says now.
	os.RemoveAll(s.conf)
	detach(t, c, Pod{ID: pod.ID})
	calls = s.calls()
	if v := s.verbs(); v != "player2 DEL, player1 DEL" {
		t.Errorf("calls: %s", v)
	}
	if got := runtimeConfig(calls[1]); got != wantRuntime || calls[1].NetNS != pod.NetNS {
		t.Errorf("DEL in %q with\n%s", calls[1].NetNS, got)
	}
	detach(t, c, pod)
	if v := s.verbs(); v != "" {
		t.Errorf("detaching a detached pod called %s", v)
	}
	expectNoRecords(t, c)
}

func runtimeConfig(c stageCall) string {
	var conf struct{ RuntimeConfig any }
	json.Unmarshal(c.Stdin, &conf)
	out, _ := json.Marshal(conf.RuntimeConfig)
	return string(out)
}

// expectNoRecords fails on any file that a pod left, libcni's cache included.
func expectNoRecords(t *testing.T, c *CNI) {
	t.Helper()
	filepath.WalkDir(c.Dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && path != podCIDRFile(c.Dir) {
			t.Errorf("leftover %s", path)
		}
		return nil
	})
}

func TestCNIMissingNamespace(t *testing.T) {
	s := newStage(t, "player1")
	s.list("10-a.conflist", "green", "1.0.0", `"type":"player1"`)
	c := s.cni(t)
	gone := filepath.Join(t.TempDir(), "net")
	os.WriteFile(gone, nil, 0o600) // what an unmounted pin leaves: a plain file
	pod := fakePod()
	pod.NetNS = gone
	attach(t, c, pod)
	s.verbs()
	detach(t, c, pod)
	if calls := s.calls(); len(calls) != 1 || calls[0].NetNS != "" {
		t.Errorf("DEL for a namespace that is gone: %+v", calls)
	}
}

func TestCNIFailures(t *testing.T) {
	for _, c := range []struct{ part, want string }{
		{"fail", "CNI plugin player2 failed in ADD: no such bridge; look at br7 (CNI code 7); it wrote: a word on stderr"},
		{"garbage", `CNI plugin player2 failed in ADD: its result is not JSON: "address: maybe"`},
		{"silent", "CNI plugin player2 failed in ADD: exit status 3"},
		{"crash", "CNI plugin player2 failed in ADD: signal: killed"},
		{"hang", "CNI plugin player2 failed in ADD: no answer within 3s"},
	} {
		t.Run(c.part, func(t *testing.T) {
			s := newStage(t, "player1", "player2")
			s.list("10-a.conflist", "green", "1.0.0", `"type":"player1"`, `"type":"player2"`)
			s.part("player2", "ADD", c.part)
			cni := s.cni(t)
			if c.part == "hang" {
				cni.Timeout = 3 * time.Second
			}
			pod := fakePod()
			_, err := cni.Attach(t.Context(), pod)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "network green") || !strings.Contains(err.Error(), pod.ID) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if v := s.verbs(); v != "player1 ADD, player2 ADD, player2 DEL, player1 DEL" {
				t.Errorf("calls: %s", v)
			}
			expectNoRecords(t, cni)
			if data, err := os.ReadFile(filepath.Join(s.dir, "child")); err == nil {
				expectDead(t, string(data))
			}
			s.part("player2", "ADD", "ok")
			attach(t, cni, pod)
		})
	}
}

// expectDead waits for a process to go, through a pidfd and not by looking again and again.
func expectDead(t *testing.T, pid string) {
	t.Helper()
	n, _ := strconv.Atoi(pid)
	p, err := os.FindProcess(n)
	if err != nil {
		return
	}
	if err := p.Signal(syscall.Signal(0)); err == nil {
		state, _ := os.ReadFile("/proc/" + pid + "/stat")
		if !strings.Contains(string(state), ") Z ") {
			t.Errorf("process %s lives on: %s", pid, state)
		}
	}
}

func TestCNIDelFailsForAWhile(t *testing.T) {
	s := newStage(t, "player1", "player2")
	s.list("10-a.conflist", "green", "1.0.0", `"type":"player1"`, `"type":"player2"`)
	s.part("player2", "ADD", "fail")
	s.part("player1", "DEL", "fail")
	c := s.cni(t)
	pod := fakePod()
	if _, err := c.Attach(t.Context(), pod); err == nil || !strings.Contains(err.Error(), "in ADD") || !strings.Contains(err.Error(), "in DEL") {
		t.Errorf("both errors are wanted: %v", err)
	}
	if err := c.Detach(t.Context(), pod); err == nil || !strings.Contains(err.Error(), "player1 failed in DEL") {
		t.Errorf("got %v", err)
	}
	if err := c.Sweep(t.Context(), func(string) bool { return true }); err != nil {
		t.Errorf("a living pod was swept: %v", err)
	}
	s.part("player1", "DEL", "ok")
	s.verbs()
	if err := c.Sweep(t.Context(), func(string) bool { return false }); err != nil {
		t.Error(err)
	}
	if v := s.verbs(); v != "player2 DEL, player1 DEL" {
		t.Errorf("calls: %s", v)
	}
	expectNoRecords(t, c)
}

// A plugin can start what outlives it and keeps its pipes open: its result counts.
func TestCNIPluginLeavesAChild(t *testing.T) {
	s := newStage(t, "player1")
	s.list("10-a.conflist", "green", "1.0.0", `"type":"player1"`)
	s.part("player1", "ADD", "linger")
	c := s.cni(t)
	pod := fakePod()
	attach(t, c, pod)
	detach(t, c, pod)
	expectNoRecords(t, c)
}

func TestCNICheck(t *testing.T) {
	s := newStage(t, "player1", "player2")
	s.list("10-a.conflist", "green", "1.0.0", `"type":"player1",`+capable, `"type":"player2"`)
	c := s.cni(t)
	pod := fakePod()
	if err := c.Check(t.Context(), pod); err == nil || !strings.Contains(err.Error(), "no record") {
		t.Errorf("a pod that was never attached: %v", err)
	}
	attach(t, c, pod)
	s.list("10-a.conflist", "blue", "1.0.0", `"type":"player1"`) // the pod keeps what it has
	s.verbs()
	if err := c.Check(t.Context(), pod); err != nil {
		t.Error(err)
	}
	for _, call := range s.calls() {
		if stdin := string(call.Stdin); !strings.Contains(stdin, `"green"`) || !strings.Contains(stdin, "prevResult") || call.NetNS != pod.NetNS {
			t.Errorf("%s %s in %s with %s", call.Plugin, call.Verb, call.NetNS, stdin)
		}
	}
	if v := s.verbs(); v != "player1 CHECK, player2 CHECK" {
		t.Errorf("calls: %s", v)
	}
	s.part("player2", "CHECK", "fail")
	if err := c.Check(t.Context(), pod); err == nil || errors.Is(err, ErrUncheckable) || !strings.Contains(err.Error(), "player2 failed in CHECK: no such bridge") {
		t.Errorf("a plugin that finds something: %v", err)
	}
	s.part("player2", "CHECK", "old")
	if err := c.Check(t.Context(), pod); !errors.Is(err, ErrUncheckable) || !strings.Contains(err.Error(), "player2") {
		t.Errorf("a plugin that does not know CHECK: %v", err)
	}
	data, _ := os.ReadFile(c.path(pod.ID))
	os.WriteFile(c.path(pod.ID), data[:len(data)/2], 0o600)
	if err := c.Check(t.Context(), pod); !errors.Is(err, errDamaged) {
		t.Errorf("a damaged record: %v", err)
	}
	if _, err := os.Stat(c.path(pod.ID)); err != nil {
		t.Errorf("a check changed the record: %v", err)
	}
	os.WriteFile(c.path(pod.ID), data, 0o600)
	os.RemoveAll(filepath.Join(c.Dir, "cache"))
	if err := c.Check(t.Context(), pod); err == nil || errors.Is(err, ErrUncheckable) {
		t.Errorf("without the result: %v", err)
	}
	detach(t, c, pod)
}

func TestCNICannotCheck(t *testing.T) {
	for version, more := range map[string]string{"0.3.1": "", "1.1.0": `,"disableCheck":true`} {
		s := newStage(t, "player1")
		s.list("10-a.conflist", "green", version, `"type":"player1"`)
		file := filepath.Join(s.conf, "10-a.conflist")
		text, _ := os.ReadFile(file)
		os.WriteFile(file, append(text[:len(text)-1], []byte(more+"}")...), 0o600)
		c := s.cni(t)
		pod := fakePod()
		attach(t, c, pod)
		s.verbs()
		if err := c.Check(t.Context(), pod); !errors.Is(err, ErrUncheckable) {
			t.Errorf("version %s%s: %v", version, more, err)
		}
		if v := s.verbs(); v != "" {
			t.Errorf("version %s%s: called %s", version, more, v)
		}
		detach(t, c, pod)
	}
}

// A daemon can be killed between the two halves of writing a record.
func TestCNISweepsHalfWrittenRecords(t *testing.T) {
	s := newStage(t, "player1")
	s.list("10-a.conflist", "green", "1.0.0", `"type":"player1"`)
	c := s.cni(t)
	alive, dead := fakePod(), fakePod()
	attach(t, c, alive)
	for _, pod := range []Pod{alive, dead} {
		if err := os.WriteFile(filepath.Join(c.Dir, "."+pod.ID+".json.1234"), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	live := func(id string) bool { return id == alive.ID }
	for _, want := range []int{1, 0} {
		if err := c.Sweep(t.Context(), live); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob(filepath.Join(c.Dir, ".*")); len(left) != want {
			t.Errorf("left: %v, want %d", left, want)
		}
		live = func(string) bool { return false }
	}
	expectNoRecords(t, c)
}

// The caller of an ADD may go; the DEL that follows must run all the same.
func TestCNICallerGoes(t *testing.T) {
	s := newStage(t, "player1")
	s.list("10-a.conflist", "green", "1.0.0", `"type":"player1"`)
	s.part("player1", "ADD", "hang")
	c := s.cni(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := c.Attach(ctx, fakePod()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if v := s.verbs(); v != "player1 ADD, player1 DEL" {
		t.Errorf("calls: %s", v)
	}
	expectNoRecords(t, c)
}

func TestCNINotReady(t *testing.T) {
	s := newStage(t, "player1")
	c := s.cni(t)
	_, err := c.Attach(t.Context(), fakePod())
	for _, err := range []error{err, c.Ready()} {
		want := "no CNI configuration in " + s.conf + ": install one or start with --network=builtin"
		if !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
	s.list("10-a.conflist", "green", "1.0.0", `"type":"player9"`)
	_, err = c.Attach(t.Context(), fakePod())
	for _, err := range []error{err, c.Ready()} {
		if err == nil || !strings.Contains(err.Error(), `CNI plugin "player9" is missing: it is not in `+s.dir) {
			t.Errorf("got %v", err)
		}
	}
	expectNoRecords(t, c)
	s.list("10-a.conflist", "green", "1.0.0", `"type":"player1"`)
	c.reload()
	if err := c.Ready(); err != nil {
		t.Error(err)
	}
}

func TestCNIFirstFileDecides(t *testing.T) {
	s := newStage(t, "player1")
	s.list("20-b.conflist", "b", "1.0.0", `"type":"player1"`)
	os.WriteFile(filepath.Join(s.conf, "README"), []byte("not a configuration"), 0o600)
	os.WriteFile(filepath.Join(s.conf, "15-c.conf"), []byte(`{"cniVersion":"1.0.0","name":"c","type":"player1"}`), 0o600)
	name := func() string {
		list, err := loadNetwork(s.conf)
		if err != nil {
			return err.Error()
		}
		return list.Name
	}
	if got := name(); got != "c" {
		t.Errorf("got %s", got)
	}
	os.WriteFile(filepath.Join(s.conf, "10-half.conflist"), []byte(`{"name":`), 0o600)
	if got := name(); !strings.Contains(got, "10-half.conflist") || !strings.Contains(got, "unexpected end of JSON") {
		t.Errorf("a broken first file: %s", got)
	}
	os.Rename(filepath.Join(s.conf, "10-half.conflist"), filepath.Join(s.conf, "30-half.conflist"))
	if got := name(); got != "c" {
		t.Errorf("a broken later file: %s", got)
	}
}

// eventually waits for what an inotify event brings about.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
	}
}

func TestCNIWatch(t *testing.T) {
	s := newStage(t, "player1")
	c := s.cni(t)
	c.startWatch()
	// Looks at what the watch knows, without the look at the directory that a question makes.
	is := func(want string) func() bool {
		return func() bool {
			c.watch.mu.Lock()
			defer c.watch.mu.Unlock()
			return want == "" && c.watch.list == nil && c.watch.err != nil || c.watch.list != nil && c.watch.list.Name == want
		}
	}
	eventually(t, "the first load", func() bool { return is("")() })
	s.list("20-b.conflist", "b", "1.0.0", `"type":"player1"`)
	eventually(t, "a directory made with its parents", is("b"))
	s.list("10-a.conflist", "a", "1.0.0", `"type":"player1"`)
	eventually(t, "a file that sorts first", is("a"))
	s.list("10-a.conflist", "a2", "1.0.0", `"type":"player1"`)
	eventually(t, "a change", is("a2"))
	os.Remove(filepath.Join(s.conf, "10-a.conflist"))
	eventually(t, "a removal", is("b"))
	os.RemoveAll(s.conf)
	eventually(t, "the directory's removal", is(""))
	s.list("10-c.conflist", "c", "1.0.0", `"type":"player1"`)
	eventually(t, "the directory made again", is("c"))
	os.RemoveAll(filepath.Dir(filepath.Dir(s.conf)))
	eventually(t, "the removal of its parents", is(""))
	s.list("10-d.conflist", "d", "1.0.0", `"type":"player1"`)
	eventually(t, "all made again", is("d"))
	os.Rename(s.conf, s.conf+".old")
	eventually(t, "the directory renamed away", is(""))
	s.list("10-e.conflist", "e", "1.0.0", `"type":"player1"`)
	eventually(t, "another in its place", is("e"))
	s.list("10-e.conflist", "f", "1.0.0", `"type":"player1"`)
	eventually(t, "a change in that one", is("f"))
}

// A machine can run out of inotify watches when a directory is watched, not only when the first one is.
func TestCNIWatchFails(t *testing.T) {
	s := newStage(t, "player1")
	c := s.cni(t)
	s.list("10-a.conflist", "a", "1.0.0", `"type":"player1"`)
	events, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	events.Close() // from here on Add fails
	c.watch.started, c.watch.events = true, events
	c.follow(events)
	for _, name := range []string{"a", "b"} {
		s.list("10-a.conflist", name, "1.0.0", `"type":"player1"`)
		list, err := c.network()
		if err != nil || list.Name != name {
			t.Errorf("got %v, %v; want network %s", list, err, name)
		}
	}
}

func TestCNIStatus(t *testing.T) {
	s := newStage(t, "player1")
	s.list("10-a.conflist", "green", "1.1.0", `"type":"player1"`)
	s.part("player1", "STATUS", "fail")
	c := s.cni(t)
	if err := c.Ready(); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "player1 failed in STATUS: no such bridge; look at br7 (CNI code 7)") {
		t.Errorf("got %v", err)
	}
	s.part("player1", "STATUS", "ok")
	c.check.mu.Lock()
	c.check.when = c.check.when.Add(-2 * statusRetry)
	c.check.mu.Unlock()
	eventually(t, "readiness", func() bool { return c.Ready() == nil })
	before := len(s.allCalls())
	for range 20 {
		if err := c.Ready(); err != nil {
			t.Error(err)
		}
	}
	if after := len(s.allCalls()); after != before {
		t.Errorf("a fresh answer was asked for again: %d calls, then %d", before, after)
	}
}

func TestCNIStatusHangs(t *testing.T) {
	s := newStage(t, "player1")
	s.list("10-a.conflist", "green", "1.1.0", `"type":"player1"`)
	s.part("player1", "STATUS", "hang")
	c := s.cni(t)
	c.Timeout = 5 * time.Second
	for i := range 3 {
		start := time.Now()
		err := c.Ready()
		if err == nil || !strings.Contains(err.Error(), "not answered STATUS yet") || time.Since(start) > 2*firstStatus {
			t.Errorf("%d: %v after %s", i, err, time.Since(start))
		}
	}
	c.check.mu.Lock()
	running := c.check.running
	c.check.mu.Unlock()
	<-running // ends by its deadline
	if n := len(s.allCalls()); n != 1 {
		t.Errorf("%d questions at once", n)
	}
}

func TestCNIDamagedRecord(t *testing.T) {
	s := newStage(t, "player1")
	s.list("10-a.conflist", "green", "1.0.0", `"type":"player1"`)
	c := s.cni(t)
	pod := fakePod()
	attach(t, c, pod)
	data, _ := os.ReadFile(c.path(pod.ID))
	for _, bad := range [][]byte{nil, data[:len(data)/2], []byte(strings.Replace(string(data), "green", "graen", 1))} {
		os.WriteFile(c.path(pod.ID), bad, 0o600)
		if _, err := c.read(pod.ID); !errors.Is(err, os.ErrNotExist) || !errors.Is(err, errDamaged) {
			t.Errorf("%.20q: %v", bad, err)
		}
		detach(t, c, pod)
	}
	if _, err := os.Stat(c.path(pod.ID) + ".damaged"); err != nil {
		t.Error(err)
	}
	if !strings.Contains(fmt.Sprint(c.Info()["damagedRecords"]), pod.ID) {
		t.Errorf("the damaged record is not reported: %v", c.Info())
	}
}

// What a damaged record stood for is freed by the pod's id, and a plugin that cannot do it holds nobody up.
func TestCNIDamagedRecordIsGuessed(t *testing.T) {
	s := newStage(t, "player1")
	s.list("10-a.conflist", "green", "1.0.0", `"type":"player1"`)
	c := s.cni(t)
	pod := fakePod()
	damage := func() { os.WriteFile(c.path(pod.ID), []byte("half"), 0o600); s.verbs() }
	attach(t, c, pod)
	damage()
	attach(t, c, pod)
	if v := s.verbs(); v != "player1 DEL, player1 ADD" {
		t.Errorf("attaching called %s", v)
	}
	damage()
	s.part("player1", "DEL", "fail")
	detach(t, c, pod)
	if calls := s.calls(); len(calls) != 1 || calls[0].ID != pod.ID || calls[0].Verb != "DEL" {
		t.Errorf("detaching called %v", calls)
	}
}

func TestCNIGC(t *testing.T) {
	s := newStage(t, "player1")
	s.list("10-a.conflist", "green", "1.1.0", `"type":"player1"`)
	c := s.cni(t)
	alive, dead := fakePod(), fakePod()
	attach(t, c, alive)
	attach(t, c, dead)
	live := func(id string) bool { return id == alive.ID }
	if err := c.Sweep(t.Context(), live); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(s.verbs(), "GC") {
		t.Error("GC without being asked for")
	}
	damaged := fakePod()
	os.WriteFile(c.path(damaged.ID)+damagedSuffix, nil, 0o600)
	if err := c.Collect(t.Context(), func(id string) bool { return id == alive.ID || id == damaged.ID }); err != nil {
		t.Fatal(err)
	}
	calls := slices.DeleteFunc(s.calls(), func(c stageCall) bool { return c.Verb != "GC" })
	if len(calls) != 1 || !strings.Contains(string(calls[0].Stdin), alive.ID) || !strings.Contains(string(calls[0].Stdin), damaged.ID) || strings.Contains(string(calls[0].Stdin), dead.ID) {
		t.Errorf("GC with %+v", calls)
	}
}

// A plugin that hangs in GC holds no pod up, and never gets to know of a pod too late to leave it alone.
func TestCNIGCStepsAside(t *testing.T) {
	s := newStage(t, "player1")
	s.list("10-a.conflist", "green", "1.1.0", `"type":"player1"`)
	s.part("player1", "GC", "hang")
	c := s.cni(t)
	collected := make(chan error)
	go func() { collected <- c.Collect(t.Context(), func(string) bool { return true }) }()
	eventually(t, "a GC", func() bool { return strings.Contains(fmt.Sprint(s.allCalls()), " GC ") })
	pod := fakePod()
	attach(t, c, pod)
	if err := <-collected; !errors.Is(err, errYielded) {
		t.Errorf("the collection came to: %v", err)
	}
	s.part("player1", "GC", "ok")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	os.Remove(filepath.Join(s.dir, "calls"))
	go func() {
		defer close(ended)
		c.CollectEvery(ctx, 10*time.Millisecond, func(string) bool { return true })
	}()
	eventually(t, "several GCs", func() bool { return strings.Count(fmt.Sprint(s.allCalls()), " GC ") > 2 })
	stop()
	<-ended
	detach(t, c, pod)
}

func TestBandwidth(t *testing.T) {
	for value, want := range map[string]string{"lots": "cannot read", "1": "between", "2P": "between"} {
		_, err := bandwidth(map[string]string{"kubernetes.io/egress-bandwidth": value})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), value) {
			t.Errorf("%s: %v", value, err)
		}
	}
}

func TestMAC(t *testing.T) {
	for value, want := range map[string]string{
		"": "no hardware address", "eth0": "no hardware address", "02:00:00:00:00:01:02:03": "no hardware address",
		"00:00:00:00:00:00": "one interface", "ff:ff:ff:ff:ff:ff": "one interface", "01:00:5e:00:00:01": "one interface",
		"0e:4b:0a:00:00:01": "gives out itself", "0e:6b:0a:00:00:01": "gives out itself",
	} {
		_, err := ReadMAC(map[string]string{macAnnotation: value})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), macAnnotation) {
			t.Errorf("%q: %v", value, err)
		}
	}
}

// realPlugins returns the directory with the CNI plugins that the project builds.
func realPlugins(t *testing.T) string {
	dir, err := filepath.Abs("../bin/linux-" + runtime.GOARCH)
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "portmap"))
	}
	if err != nil {
		t.Fatalf("this test runs the real CNI plugins: run make build first (%v)", err)
	}
	return dir
}

const realNetwork = `{"cniVersion":"1.1.0","name":"ektestnet","plugins":[
	{"type":"bridge","bridge":"ektestbr","isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","dataDir":%q,
	 "ranges":[[{"subnet":"10.211.30.0/24"}],[{"subnet":"fd00:211:30::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
	{"type":"portmap","capabilities":{"portMappings":true},"snat":true}]}`

// pluginsIn makes a directory of plugins that work in a namespace: the engine runs them in its own.
func (w *world) pluginsIn(ns, bin string) string {
	dir := filepath.Join(w.dir, "plugins")
	os.Mkdir(dir, 0o700)
	for _, name := range []string{"bridge", "host-local", "portmap"} {
		script := fmt.Sprintf("#!/bin/sh\nexec nsenter --net=%s %s\n", ns, filepath.Join(bin, name))
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			w.t.Fatal(err)
		}
	}
	return dir
}

// The whole test takes place inside the world's host.
func TestCNIRealPlugins(t *testing.T) {
	w := newWorld(t)
	bin := w.pluginsIn(w.host, realPlugins(t))
	ipam := filepath.Join(w.dir, "ipam")
	conf := filepath.Join(w.dir, "net.d")
	os.Mkdir(conf, 0o700)
	os.WriteFile(filepath.Join(conf, "10.conflist"), fmt.Appendf(nil, realNetwork, ipam), 0o600)
	c := &CNI{ConfDir: conf, BinDirs: []string{bin}, Dir: filepath.Join(w.dir, "cni"), Log: testLog(t)}
	defer c.Close()
	pods := make([]Pod, 4)
	for i := range pods {
		pods[i] = w.pod(fmt.Sprint("p", i), Port{HostPort: uint16(8000 + i), ContainerPort: 80})
		if i < 3 { // an open socket keeps a namespace alive, and the last one's is to go
			w.serve(pods[i].NetNS, pods[i].Name, "tcp", 80)
		}
	}
	results := make([]Result, len(pods))
	each(pods, func(i int) {
		err := inside(w.host, func() (err error) { results[i], err = c.Attach(context.Background(), pods[i]); return })
		if err != nil {
			t.Error(err)
		}
	})
	for i, r := range results {
		if len(r.IPs) != 2 || !r.IPs[0].Is4() {
			t.Fatalf("pod %d got %v", i, r.IPs)
		}
		if i < 3 {
			w.expect(pods[(i+1)%len(pods)].NetNS, "tcp", r.IPs[0].String()+":80", pods[i].Name, "")
			w.expect(w.host, "tcp", r.IPs[0].String()+":80", pods[i].Name, "")
		}
	}
	gateway := "10.211.30.1"
	w.expect(pods[0].NetNS, "tcp", gateway+":8001", "p1", "")

	restarted := &CNI{ConfDir: conf, BinDirs: []string{bin}, Dir: c.Dir}
	defer restarted.Close()
	w.drop(pods[3].NetNS)
	w.in(w.host, func() error {
		again, err := restarted.Attach(context.Background(), pods[0])
		if !reflect.DeepEqual(again, results[0]) {
			t.Errorf("again: %v, before: %v", again, results[0])
		}
		return errors.Join(err, restarted.Sweep(context.Background(), func(id string) bool { return id == pods[0].ID || id == pods[2].ID }),
			restarted.Detach(context.Background(), pods[0]), restarted.Detach(context.Background(), pods[2]))
	})
	expectNoRecords(t, c)
	addresses, _ := filepath.Glob(filepath.Join(ipam, "ektestnet", "1*"))
	if len(addresses) > 0 {
		t.Errorf("addresses not given back: %v", addresses)
	}
	eventually(t, "the end of the links", func() bool { // the kernel takes a namespace down in its own time
		return !strings.Contains(w.run(w.host, "ip", "-br", "link"), "veth")
	})
}
