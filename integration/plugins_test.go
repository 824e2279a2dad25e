package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// actor is a plugin of a chain: it passes on what the plugins before it came to, unless the file beside it that is named
// after the verb says otherwise. It stands behind bridge and host-local, so by its turn there is an address to lose.
const actor = `#!/bin/sh
in=$(cat)
act=$(cat "$0.$CNI_COMMAND" 2>/dev/null)
test "$CNI_COMMAND" = GC && echo "$in" >> "$0.garbage"
echo "$CNI_COMMAND $CNI_CONTAINERID" >> "$0.calls"
case "$act" in
fail) echo "a word on stderr" >&2
      echo '{"cniVersion":"1.0.0","code":11,"msg":"the frobnicator is jammed","details":"kick it"}'; exit 1 ;;
hang) echo $$ > "$0.new"; mv "$0.new" "$0.pid"; exec sleep 1000 ;;
garbage) echo "address: maybe"; exit 0 ;;
stuck) exec stat "$(cat "$0.where")/dir" ;;
crash) kill -SEGV $$ ;;
empty) exit 0 ;;
nothing) echo '{"cniVersion":"1.0.0"}'; exit 0 ;;
esac
test "$CNI_COMMAND" = ADD || exit 0
echo "$in" | sed 's/.*"prevResult"://; s/,"type":"actor".*//' # libcni sorts the keys
`

// A troupe is a node whose CNI network has an actor in it.
type troupe struct {
	*node
	plugins, good string
}

func prepareTroupe(t *testing.T) *troupe {
	t.Helper()
	n := prepareNode(t, "cni")
	p := &troupe{node: n, plugins: filepath.Join(n.Base, "plugins")}
	must(t, os.MkdirAll(p.plugins, 0o755))
	for _, name := range []string{"bridge", "host-local", "portmap", "loopback"} {
		must(t, os.Symlink(filepath.Join(n.Bin, name), filepath.Join(p.plugins, name)))
	}
	must(t, os.WriteFile(filepath.Join(p.plugins, "actor"), []byte(actor), 0o755))
	n.CNIBin, p.good = p.plugins, n.BridgeConflist()
	return p
}

func startTroupe(t *testing.T) *troupe {
	t.Helper()
	p := prepareTroupe(t)
	p.Config = fmt.Sprintf("[network.cni]\ntimeout = %q\n", pluginLimit)
	must(t, p.Start())
	p.use("actor")
	return p
}

// pluginLimit is the deadline of a plugin's call, and unanswered what is said of a plugin that hangs.
var (
	pluginLimit = engine.Patience(2 * time.Second).String()
	unanswered  = "no answer within " + pluginLimit
)

// use puts a plugin into the chain, or only the good ones.
func (p *troupe) use(plugin string) {
	p.t.Helper()
	list := p.good
	if plugin != "" {
		list = strings.Replace(list, `{"type": "portmap"`, `{"type": "`+plugin+`"}, {"type": "portmap"`, 1)
	}
	name := p.Bridge + time.Now().Format("150405.000000") // tells that the daemon has read this one
	list = strings.Replace(list, `"name": "`+p.Bridge+`"`, `"name": "`+name+`"`, 1)
	p.Conflist = list // also after a restart
	must(p.t, p.WriteConflist())
	p.eventually(10*time.Second, func() error {
		s, err := p.Runtime.Status(p.ctx(), &cri.StatusRequest{Verbose: true})
		if err != nil || strings.Contains(fmt.Sprint(s.Info), name) {
			return err
		}
		return fmt.Errorf("the daemon has not read the new configuration: %v", s.Info)
	})
}

// part is what the actor does for a verb from now on; empty: nothing wrong.
func (p *troupe) part(verb, act string) {
	p.t.Helper()
	must(p.t, os.WriteFile(filepath.Join(p.plugins, "actor."+verb), []byte(act), 0o644))
}

func (p *troupe) runTroubled(name string) error {
	_, err := p.Runtime.RunPodSandbox(p.ctx(), &cri.RunPodSandboxRequest{Config: p.Pod(name)})
	return err
}

// noLeases checks host-local's books.
func (p *troupe) noLeases() {
	p.t.Helper()
	if leases := p.leases(); len(leases) > 0 {
		p.t.Errorf("addresses are still taken: %v", leases)
	}
}

func (p *troupe) leases() []string {
	files, _ := filepath.Glob(filepath.Join(p.Base, "ipam", "*", "*.*.*.*"))
	return files
}

// TestPluginTrouble: what a CNI plugin says reaches the kubelet's event, it blocks no other pod, and nothing is left of its
// own.
func TestPluginTrouble(t *testing.T) {
	p := startTroupe(t)
	for _, c := range []struct {
		act   string
		words []string
	}{
		{"fail", []string{"CNI plugin actor failed in ADD", "the frobnicator is jammed", "kick it", "CNI code 11", "a word on stderr"}},
		{"garbage", []string{"CNI plugin actor failed in ADD", "not JSON", "address: maybe"}},
		{"crash", []string{"CNI plugin actor failed in ADD", "signal: segmentation fault"}},
		{"empty", []string{"CNI plugin actor failed in ADD", "not JSON"}},
		{"nothing", []string{"no address"}},
		{"hang", []string{"CNI plugin actor failed in ADD", unanswered}},
	} {
		t.Run(c.act+" in ADD", func(t *testing.T) {
			p.part("ADD", c.act)
			if c.act == "nothing" {
				p.withoutPortmap()
				defer p.use("actor")
			}
			refused(t, p.runTroubled("trouble"), anyCode, c.words...)
			p.part("ADD", "")
			p.noLeases()
			p.nothingListed()
			must(t, p.runTroubled("beside"))
			must(t, p.RemoveAll(p.ctx()))
			p.noLeases()
		})
	}
	t.Run("missing", func(t *testing.T) {
		p.use("vanished")
		defer p.use("actor")
		refused(t, p.runTroubled("trouble"), anyCode, `CNI plugin "vanished" is missing`, p.plugins)
		p.noLeases()
		p.nothingListed()
	})
	t.Run("missing in DEL", func(t *testing.T) {
		must(t, p.runTroubled("trouble"))
		must(t, os.Rename(filepath.Join(p.plugins, "actor"), filepath.Join(p.plugins, "away")))
		refused(t, p.RemoveAll(p.ctx()), anyCode, `"actor"`)
		must(t, os.Rename(filepath.Join(p.plugins, "away"), filepath.Join(p.plugins, "actor")))
		must(t, p.RemoveAll(p.ctx()))
		p.noLeases()
	})
}

// TestPluginIsStuck: a plugin that waits in the kernel dies of no signal. Its pod is told so in time, with the pid, and is alone in
// waiting for it; when it is gone, so is what it took.
func TestPluginIsStuck(t *testing.T) {
	waits(t)
	p := startTroupe(t)
	fuse := serveFuse(t)
	fuse.quieten(false, func(command string) bool { return command == "stat" })
	must(t, os.WriteFile(filepath.Join(p.plugins, "actor.where"), []byte(fuse.dir), 0o644))
	p.part("ADD", "stuck")
	begun := time.Now()
	err := p.runTroubled("trouble")
	refused(t, err, anyCode, "CNI plugin actor failed in ADD", unanswered, "pid ", "was killed and does not end", "an earlier call is not over")
	if took := time.Since(begun); took > engine.Patience(20*time.Second) {
		t.Errorf("told after %s", took)
	}
	p.part("ADD", "")
	for range 3 { // each would hold a process of its own
		refused(t, p.runTroubled("trouble"), anyCode, "an earlier call is not over")
	}
	if n := fuse.waiting(); n != 1 {
		t.Errorf("%d plugins wait", n)
	}
	must(t, p.runTroubled("beside"))
	fuse.close()
	p.eventually(10*time.Second, func() error { return p.runTroubled("trouble") })
	must(t, p.RemoveAll(p.ctx()))
	p.noLeases()
}

// TestPluginIsStuckInGC: a collection that cannot be ended keeps no pod from its network.
func TestPluginIsStuckInGC(t *testing.T) {
	waits(t)
	p := prepareTroupe(t)
	p.good = strings.Replace(p.good, `"cniVersion": "1.0.0"`, `"cniVersion": "1.1.0"`, 1)
	p.Config = fmt.Sprintf("[network.cni]\ntimeout = %q\ngc = \"1s\"\n", pluginLimit)
	fuse := serveFuse(t)
	fuse.quieten(false, func(command string) bool { return command == "stat" })
	must(t, os.WriteFile(filepath.Join(p.plugins, "actor.where"), []byte(fuse.dir), 0o644))
	p.part("GC", "stuck")
	must(t, p.Start())
	p.use("actor")
	p.eventually(20*time.Second, func() error {
		if fuse.waiting() == 0 {
			return fmt.Errorf("no collection yet")
		}
		return nil
	})
	must(t, p.runTroubled("beside"))
	must(t, p.RemoveAll(p.ctx()))
	fuse.close()
}

// withoutPortmap makes the actor the last of the chain.
func (p *troupe) withoutPortmap() {
	good := p.good
	list, _, _ := strings.Cut(good, `{"type": "portmap"`)
	p.good = list + `{"type": "actor"}]}`
	p.use("")
	p.good = good
}

// TestPluginFailsInDel: a plugin that cannot let go keeps its own pod, whose removal says why, and no other. When it can again, the
// pod goes, whether the kubelet asks again or the daemon was started anew.
func TestPluginFailsInDel(t *testing.T) {
	p := startTroupe(t)
	for _, c := range []struct {
		act     string
		restart bool
		words   []string
	}{
		{"fail", false, []string{"CNI plugin actor failed in DEL", "the frobnicator is jammed"}},
		{"crash", true, []string{"CNI plugin actor failed in DEL", "signal"}},
		{"hang", false, []string{"CNI plugin actor failed in DEL", unanswered}},
	} {
		t.Run(c.act, func(t *testing.T) {
			must(t, p.runTroubled("stuck"))
			p.part("DEL", c.act)
			pods, err := p.Runtime.ListPodSandbox(p.ctx(), &cri.ListPodSandboxRequest{})
			must(t, err)
			id := pods.Items[0].Id
			for _, call := range []func(context.Context) error{
				func(ctx context.Context) error {
					_, err := p.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
					return err
				},
				func(ctx context.Context) error {
					_, err := p.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
					return err
				},
			} {
				refused(t, call(p.ctx()), anyCode, c.words...)
			}
			if s := p.podStatus(id); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
				t.Errorf("the pod is %s", s.State)
			}
			must(t, p.runTroubled("beside"))
			p.part("DEL", "")
			if c.restart {
				must(t, p.Restart())
				p.eventually(20*time.Second, func() error { // its removal was asked for
					if _, err := p.Runtime.PodSandboxStatus(p.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: id}); err == nil {
						return fmt.Errorf("pod %s is still there", id)
					}
					return nil
				})
			}
			must(t, p.RemoveAll(p.ctx()))
			p.noLeases()
		})
	}
}

// TestPluginFailsInSweep: the address of a pod whose record a power cut took is freed as soon as the plugin can, which after a boot
// is some time later. Nobody asks for it again.
func TestPluginFailsInSweep(t *testing.T) {
	p := startTroupe(t)
	must(t, p.runTroubled("lost"))
	pods, err := p.Runtime.ListPodSandbox(p.ctx(), &cri.ListPodSandboxRequest{})
	must(t, err)
	id := pods.Items[0].Id
	p.part("DEL", "fail")
	must(t, p.Kill())
	must(t, os.RemoveAll(filepath.Join(p.Root(), "pods", id)))
	must(t, p.Start())
	p.eventually(20*time.Second, func() error {
		calls, err := os.ReadFile(filepath.Join(p.plugins, "actor.calls"))
		if err == nil && !strings.Contains(string(calls), "DEL "+id) {
			err = fmt.Errorf("the plugin was not asked")
		}
		return err
	})
	p.part("DEL", "")
	p.eventually(20*time.Second, func() error {
		if leases := p.leases(); len(leases) > 0 {
			return fmt.Errorf("addresses are still taken: %v", leases)
		}
		return nil
	})
}

// TestPluginHangsBesideOthers: while one pod waits for a plugin that hangs, others come and go.
func TestPluginHangsBesideOthers(t *testing.T) {
	p := prepareTroupe(t)
	must(t, p.Start())
	p.use("actor")
	p.part("ADD", "hang")
	stuck := make(chan error, 1)
	ctx := p.ctx()
	go func() {
		_, err := p.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.Pod("stuck")})
		stuck <- err
	}()
	var plugin int
	p.eventually(20*time.Second, func() error {
		data, err := os.ReadFile(filepath.Join(p.plugins, "actor.pid"))
		fmt.Sscan(string(data), &plugin)
		return err
	})
	p.part("ADD", "")
	must(t, p.runTroubled("beside"))
	select {
	case err := <-stuck:
		t.Errorf("the plugin did not hang while the other pod came up: %v", err)
	default:
	}
	must(t, syscall.Kill(plugin, syscall.SIGKILL))
	refused(t, <-stuck, anyCode, "CNI plugin actor failed in ADD", "signal: killed")
	must(t, p.RemoveAll(p.ctx()))
	p.noLeases()
}

// TestCNIGarbageCollection: where the configuration asks for it, the plugins are told what to keep, at start and on a timer. The
// reference plugins know the verb and free nothing (v1.9.1), so it is the actor that is watched.
func TestCNIGarbageCollection(t *testing.T) {
	p := prepareTroupe(t)
	p.Config = "[network.cni]\ngc = \"1s\"\n"
	p.good = strings.Replace(p.BridgeConflist(), "1.0.0", "1.1.0", 1)
	p.Conflist = strings.Replace(p.good, `{"type": "portmap"`, `{"type": "actor"}, {"type": "portmap"`, 1)
	must(t, p.Start())
	collected := func(after int, words ...string) {
		t.Helper()
		p.eventually(20*time.Second, func() error {
			data, _ := os.ReadFile(filepath.Join(p.plugins, "actor.garbage"))
			calls := strings.Split(strings.TrimSpace(string(data)), "\n")
			for _, w := range words {
				if !strings.Contains(calls[len(calls)-1], w) {
					return fmt.Errorf("the last GC lacks %q: %v", w, calls)
				}
			}
			if len(data) == 0 || len(calls) <= after {
				return fmt.Errorf("%d collections: %v", len(calls), calls)
			}
			return nil
		})
	}
	collected(0, `"cni.dev/valid-attachments":[]`)
	pod := p.runPod(p.Pod("living"))
	collected(2, `"cni.dev/valid-attachments":[{"containerID":"`+pod+`","ifname":"eth0"}]`)
	p.removePod(pod)
	collected(4, `"cni.dev/valid-attachments":[]`)
	p.noLeases()
}
