package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/evenkeel/evenkeel/internal/effect"
)

// A step is one call of a provider, made by a process of its own which a fault ends or misleads.
type step struct {
	Builtin *builtinStep `json:",omitempty"`
	CNI     *cniStep     `json:",omitempty"`
	Call    string       // attach, detach, sweep
	Pod     Pod
}

type builtinStep struct{ Dir, NetNS, Subnets string }
type cniStep struct{ Dir, ConfDir, BinDir string }

const stepEnv = "EVENKEEL_TEST_STEP"

func (s step) provider() Provider {
	if s.CNI != nil {
		return &CNI{Dir: s.CNI.Dir, ConfDir: s.CNI.ConfDir, BinDirs: []string{s.CNI.BinDir}}
	}
	subnets, _ := parseSubnets(s.Builtin.Subnets)
	return &Builtin{Dir: s.Builtin.Dir, NetNS: s.Builtin.NetNS, Bridge: "ektest0", Table: "ektest", Subnets: subnets}
}

// takeStep is the process's whole life.
func takeStep() int {
	var s step
	if err := json.Unmarshal([]byte(os.Getenv(stepEnv)), &s); err != nil {
		fmt.Println(err)
		return 2
	}
	var err error
	switch p := s.provider(); s.Call {
	case "attach":
		_, err = p.Attach(context.Background(), s.Pod)
	case "detach":
		err = p.Detach(context.Background(), s.Pod)
	case "sweep":
		err = p.Sweep(context.Background(), func(string) bool { return false })
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func (s step) command(fault string) *exec.Cmd {
	self, _ := os.Executable()
	data, _ := json.Marshal(s)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), stepEnv+"="+string(data), effect.FaultEnv+"="+fault)
	return cmd
}

// take runs the step and says whether the fault struck: the process was killed, or failed on purpose.
func (s step) take(t *testing.T, fault string) (struck bool) {
	t.Helper()
	out, err := s.command(fault).CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return false
	case !errors.As(err, &exit):
		t.Fatal(err)
	case exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL, strings.Contains(string(out), "on purpose"):
		return true
	}
	t.Fatalf("%s with %s: %v\n%s", s.Call, fault, err, out)
	return false
}

// faults are all four faults of every effect whose name begins so.
func faults(prefix string) (list []string) {
	for _, name := range effect.All() {
		if strings.HasPrefix(name, prefix) {
			for _, action := range []string{"kill-before", "kill-after", "fail-before", "fail-after"} {
				list = append(list, action+":"+name)
			}
		}
	}
	return list
}

// cures are the calls that may come next. After an error it is the same daemon's Detach.
func cures(fault string) []string {
	if strings.HasPrefix(fault, "fail") {
		return []string{"detach"}
	}
	return []string{"detach", "sweep", "attach"}
}

// Whatever a fault leaves of an Attach, Detach and Sweep take it all down, and a second Attach works.
func TestBuiltinFaults(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.40.0/24", "fd00:211:40::/64")
	struck := map[string]bool{}
	n := 0
	ns := w.namespace("pod")
	w.serve(ns, "pod", "tcp", 80)
	for _, call := range []string{"attach", "detach", "sweep"} {
		for _, fault := range faults("network.builtin.") {
			for _, cure := range cures(fault) {
				n++
				pod := Pod{ID: randomID(), NetNS: ns, Ports: []Port{{HostPort: 8080, ContainerPort: 80}, {Protocol: "udp", HostPort: 53, ContainerPort: 53}}}
				s := step{Builtin: &builtinStep{b.Dir, b.NetNS, "10.211.40.0/24,fd00:211:40::/64"}, Call: call, Pod: pod}
				if call != "attach" {
					attach(t, b, pod)
				} else {
					w.run(w.host, "nft", "flush", "ruleset") // so that bridge and table are brought up, too
				}
				if !s.take(t, fault) {
					detach(t, b, pod)
					break // this call does not come by this effect
				}
				struck[call+" "+fault] = true
				w.cure(b, pod, cure)
				w.expectPodGone(b, pod.ID)
			}
		}
	}
	t.Logf("%d faults, %d kinds struck", n, len(struck))
	for _, want := range []string{"attach kill-after:network.builtin.table", "attach kill-after:network.builtin.address", "attach kill-after:network.builtin.ports",
		"attach kill-before:network.builtin.link", "detach kill-after:network.builtin.detach.ports", "detach kill-after:network.builtin.detach.link",
		"sweep kill-after:network.builtin.detach.address"} {
		if !struck[want] {
			t.Errorf("%s never struck", want)
		}
	}
}

func (w *world) cure(b *Builtin, pod Pod, how string) {
	switch how {
	case "attach":
		r := attach(w.t, b, pod)
		w.expect(w.host, "tcp", "127.0.0.1:8080", "pod", "")
		w.expect(w.host, "tcp", netip.AddrPortFrom(r.IPs[1], 80).String(), "pod", "")
		detach(w.t, b, pod)
	case "detach":
		detach(w.t, b, pod)
	case "sweep":
		if err := b.Sweep(context.Background(), func(string) bool { return false }); err != nil {
			w.t.Error(err)
		}
	}
}

// States in the middle of an effect, which no fault leaves.
func TestBuiltinHalfMade(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.41.0/24", "fd00:211:41::/64")
	if err := b.Ready(); err != nil {
		t.Fatal(err)
	}
	h, _ := b.open()
	halves := map[string]func(pod Pod) error{
		"one address of two": func(pod Pod) error { return os.Symlink(pod.ID, filepath.Join(b.addresses().dir, "10.211.41.99")) },
		"a pair outside the bridge": func(pod Pod) error {
			addrs, err := b.address(h, pod.ID)
			if err != nil {
				return err
			}
			ns, err := netns.GetFromPath(pod.NetNS)
			if err != nil {
				return err
			}
			defer ns.Close()
			return h.addPair(pod.ID, ns, hardwareAddr(addrs[0]), 1500)
		},
		"a port in the book only": func(pod Pod) error {
			return b.ports().reserve(pod.ID, []Port{{Protocol: "tcp", HostPort: 8080, ContainerPort: 80}})
		},
		"an element in the map only": func(pod Pod) error {
			addrs, err := b.address(h, pod.ID)
			if err != nil {
				return err
			}
			elements, err := elementsOf([]mapping{{Port{Protocol: "tcp", HostPort: 8080, ContainerPort: 80}, pod.ID}}, addrs)
			return errors.Join(err, h.rules.add(elements))
		},
	}
	for name, half := range halves {
		for _, cure := range []string{"attach", "detach", "sweep"} {
			if name == "an element in the map only" && cure != "attach" {
				continue // the book is written first: this state needs a lost book, and the next start writes the table anew
			}
			pod := Pod{ID: randomID(), NetNS: w.namespace(strings.ReplaceAll(name, " ", "-") + cure), Ports: []Port{{HostPort: 8080, ContainerPort: 80}}}
			w.serve(pod.NetNS, "pod", "tcp", 80)
			if err := half(pod); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			w.cure(b, pod, cure)
			w.expectPodGone(b, pod.ID)
		}
	}
}

func TestCNIFaults(t *testing.T) {
	s := newStage(t, "player1", "player2")
	s.list("10-a.conflist", "green", "1.0.0", `"type":"player1"`, `"type":"player2"`)
	c := s.cni(t)
	struck := map[string]bool{}
	for _, call := range []string{"attach", "detach", "sweep"} {
		for _, fault := range faults("network.cni.") {
			for _, cure := range cures(fault) {
				os.Remove(filepath.Join(s.dir, "calls"))
				pod := fakePod()
				st := step{CNI: &cniStep{c.Dir, c.ConfDir, s.dir}, Call: call, Pod: pod}
				if call != "attach" {
					attach(t, c, pod)
				}
				hit := st.take(t, fault)
				struck[call+" "+fault] = hit || struck[call+" "+fault]
				if cure == "attach" {
					attach(t, c, pod)
				}
				if cure == "sweep" {
					if err := c.Sweep(t.Context(), func(string) bool { return false }); err != nil {
						t.Error(err)
					}
				} else {
					detach(t, c, pod)
				}
				expectNoRecords(t, c)
				s.expectUndone(call + " " + fault + " " + cure)
				if !hit {
					break
				}
			}
		}
	}
	for _, want := range []string{"attach kill-after:network.cni.record", "attach kill-after:network.cni.add", "attach fail-after:network.cni.add",
		"detach kill-after:network.cni.del", "sweep kill-before:network.cni.record.remove"} {
		if !struck[want] {
			t.Errorf("%s never struck", want)
		}
	}
}

// expectUndone wants a DEL behind the last ADD of each player.
func (s *stage) expectUndone(what string) {
	s.t.Helper()
	last := map[string]string{}
	for _, c := range s.calls() {
		last[c.Plugin] = c.Verb
	}
	for player, verb := range last {
		if verb != "DEL" {
			s.t.Errorf("%s: the last call of %s was %s", what, player, verb)
		}
	}
}

// A plugin must not work on when its daemon was killed: the next daemon's DEL would race with it.
func TestCNIPluginDiesWithItsDaemon(t *testing.T) {
	s := newStage(t, "player1")
	s.list("10-a.conflist", "green", "1.0.0", `"type":"player1"`)
	s.part("player1", "ADD", "hang")
	cmd := step{CNI: &cniStep{filepath.Join(s.dir, "cni"), s.conf, s.dir}, Call: "attach", Pod: fakePod()}.command("")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var grandchild int
	eventually(t, "the plugin's start", func() bool {
		data, _ := os.ReadFile(filepath.Join(s.dir, "child"))
		n, _ := fmt.Sscan(string(data), &grandchild)
		return n == 1
	})
	defer syscall.Kill(grandchild, syscall.SIGKILL)
	cmd.Process.Kill()
	cmd.Wait()
	pid := fmt.Sprint(s.calls()[0].Pid)
	eventually(t, "the plugin's end", func() bool {
		state, err := os.ReadFile("/proc/" + pid + "/stat")
		return err != nil || strings.Contains(string(state), ") Z ")
	})
}

func TestTurns(t *testing.T) {
	var turns turns
	release, err := turns.take(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := turns.take(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	var order []int
	done := make(chan struct{})
	go func() {
		defer close(done)
		again, _ := turns.take(context.Background(), "a")
		order = append(order, 2)
		again()
	}()
	other, err := turns.take(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	other()
	order = append(order, 1)
	release()
	<-done
	if !slices.Equal(order, []int{1, 2}) || len(turns.busy) != 0 {
		t.Errorf("%v, %v", order, turns.busy)
	}
}
