package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/effect"
	"github.com/evenkeel/evenkeel/internal/namespace"
	"github.com/evenkeel/evenkeel/oci"
	"github.com/evenkeel/evenkeel/shim"
)

// The effects of making a pod, in order.
var (
	podRecordIntent = effect.New("pod.record")
	podDirs         = effect.New("pod.dirs")
	podCgroup       = effect.New("pod.cgroup")
	podNamespaces   = effect.New("pod.namespaces")
	podFiles        = effect.New("pod.files")
	podShim         = effect.New("pod.shim")
	podShimScope    = effect.New("pod.shim.scope")
	podInit         = effect.New("pod.init")
	podReady        = effect.New("pod.ready")
)

// A pod is one sandbox. Its record is immutable: a change swaps in a new one.
type pod struct {
	*Pods
	id                 string
	record             atomic.Pointer[podRecord]
	writing            turn // held while the record is written
	turn               turn // held by build, stop and remove
	built              *result
	wanted             context.Context // ends when somebody asks for the pod's end
	unwant             context.CancelCauseFunc
	silent             atomic.Bool // the shim lives but does not answer
	doing              activity    // what the build waits for
	cpu                cpuRate
	stuck              atomic.Bool // a teardown failed
	stopping, removing ending
	gone               bool  // removed; guarded by turn
	heard              heard // by plugins; guarded by turn

	encoding atomic.Pointer[encoding[podRecord]] // for lists
	timeline timeline
}

func (p *Pods) newPod(r podRecord) *pod {
	if r.Cgroup == "" {
		r.Cgroup, r.Scopes = path.Join(p.cgroupParent(r.Config.Message), r.ID), p.Scopes
	}
	pod := &pod{Pods: p, id: r.ID, writing: newTurn(), turn: newTurn(), built: newResult()}
	pod.wanted, pod.unwant = context.WithCancelCause(context.Background())
	pod.turn.hold() // the build's, until it ends
	pod.timeline.past, r.Timeline = r.Timeline, nil
	pod.record.Store(&r)
	return pod
}

// facts returns the pod's record as it is now. It must not be changed.
func (p *pod) facts() *podRecord { return p.record.Load() }

// note writes what has happened, or is about to, before anybody can read it. What cannot be written does not count.
func (p *pod) note(ctx context.Context, e effect.Effect, change func(*podRecord)) error {
	return p.amend(ctx, e, change, false)
}

// noteAnyway is what (*container).noteAnyway is for containers.
func (p *pod) noteAnyway(ctx context.Context, e effect.Effect, change func(*podRecord)) {
	if err := p.amend(ctx, e, change, true); err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.Log.Error("cannot write the record of a pod", "pod", p.id, "error", err)
	}
}

func (p *pod) amend(ctx context.Context, e effect.Effect, change func(*podRecord), anyway bool) error {
	if err := p.writing.take(ctx); err != nil {
		return err
	}
	defer p.writing.give()
	next := *p.facts()
	change(&next)
	next.Timeline = p.timeline.operations(e)
	err := e.Do(ctx, func() error { return writeRecord(p.podRoot(p.id), &next) })
	if err != nil && !anyway {
		return err
	}
	next.Timeline = nil
	p.swap(&next)
	return err
}

// whileWanted ends with ctx, or when somebody has asked for the pod's end.
func (p *pod) whileWanted(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(p.wanted, func() { cancel(context.Cause(p.wanted)) })
	return ctx, func() { stop(); cancel(nil) }
}

// build makes the pod, or leaves nothing of it.
func (p *pod) build(ctx context.Context) {
	ctx, stop := context.WithTimeoutCause(ctx, podBuildLimit, fmt.Errorf("pod %s is not up after %s", p.id, podBuildLimit))
	defer stop()
	ctx, end := p.whileWanted(ctx)
	defer end()
	ctx, told := p.timeline.begin(ctx, "RunPodSandbox", podReady)
	err := p.make(ctx)
	if err != nil {
		err = errors.Join(err, p.teardown(ctx))
	} else {
		go p.watchShim(p.facts().Shim)
		go p.watchInit(p.facts().Init)
	}
	told(err)
	p.built.end(err)
	p.turn.give()
}

// startingInit is what the shim is asked for before the pod is READY.
const startingInit = "waiting for its shim to start its init"

func (p *pod) make(ctx context.Context) error {
	err := podRecordIntent.Do(ctx, func() error {
		if err := os.MkdirAll(p.podRoot(p.id), 0o700); err != nil {
			return err
		}
		return writeRecord(p.podRoot(p.id), p.facts())
	})
	if err != nil {
		return fmt.Errorf("cannot record pod %s: %w", p.id, err)
	}
	var dns networkDNS
	var next podRecord
	steps := []struct {
		what string
		do   func() error
	}{
		{"making its directories", func() error { return p.makeDirs(ctx) }},
		{"making its cgroup", func() error { return p.makeCgroup(ctx) }},
		{"making its namespaces", func() error { return p.makeNamespaces(ctx) }},
		{"waiting for the network", func() (err error) { next.IPs, dns, err = p.attach(ctx); return err }},
		{"making its files", func() error { return p.makeFiles(ctx, dns) }},
		{"starting its shim", func() (err error) { next.Shim, err = p.spawnShim(ctx); return err }},
		{startingInit, func() (err error) { next.Init, err = p.startInit(ctx); return err }},
	}
	if p.initOwns() {
		steps = slices.Concat(steps[:2], steps[5:], steps[2:5])
	}
	for _, step := range steps {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p.doing.set("%s", step.what)
		if err := step.do(); err != nil {
			return err
		}
	}
	p.doing.set("waiting for plugins")
	if err := p.askPlugins(ctx, next); err != nil {
		return err
	}
	return p.note(ctx, podReady, func(r *podRecord) {
		r.IPs, r.Shim, r.Init, r.ReadyAt = next.IPs, next.Shim, next.Init, time.Now()
	})
}

func (p *pod) makeDirs(ctx context.Context) error {
	return podDirs.Do(ctx, func() error {
		if err := os.MkdirAll(p.podState(p.id), 0o711); err != nil {
			return err
		}
		logs := p.facts().Config.Message.GetLogDirectory()
		if logs == "" {
			return nil
		}
		if err := os.MkdirAll(logs, 0o755); err != nil { // the kubelet makes it itself; crictl does not
			return fmt.Errorf("cannot make config.log_directory of pod %s: %w", p.id, err)
		}
		return nil
	})
}

func (p *pod) makeCgroup(ctx context.Context) error {
	return podCgroup.Do(ctx, func() error {
		if err := p.Cgroups.Create(p.facts().Cgroup); err != nil {
			return fmt.Errorf("cannot make the cgroup of pod %s: %w", p.id, err)
		}
		return nil
	})
}

// namespacesWanted are those that the pod does not share with the node. A pod on the node's network has the node's name too.
func (p *pod) namespacesWanted() namespace.Options {
	cfg := p.facts().Config.Message
	o := p.namespaceOptions()
	net := o.GetNetwork() == cri.NamespaceMode_POD
	want := namespace.Options{
		Net: net, UTS: net, IPC: o.GetIpc() == cri.NamespaceMode_POD,
		User: p.userNamespace(), Sysctls: cfg.GetLinux().GetSysctls(),
	}
	if net {
		want.Hostname = hostname(cfg)
	}
	return want
}

// makeNamespaces pins the pod's namespaces. Where its init owns them, the init is there already and brought them along.
func (p *pod) makeNamespaces(ctx context.Context) error {
	pin := func() error { return namespace.Pin(ctx, p.namespaceDir(), p.namespacesWanted()) }
	if p.initOwns() {
		pin = func() error { return p.pinInits(ctx) }
	}
	return podNamespaces.Do(ctx, func() error {
		err := pin()
		if errors.Is(err, namespace.ErrSysctl) {
			return fmt.Errorf("cannot make the namespaces of pod %s: %w: %w", p.id, err, ErrInvalid)
		} else if err != nil {
			return fmt.Errorf("cannot make the namespaces of pod %s: %w", p.id, err)
		}
		return nil
	})
}

func (p *pod) spawnShim(ctx context.Context) (process shim.Process, err error) {
	runtime := p.runtime()
	err = podShim.Do(ctx, func() (err error) {
		process, err = shim.Spawn(ctx, p.Shim, shim.Config{
			PodID: p.id, Dir: p.podState(p.id), Exits: filepath.Join(p.State, "containers"),
			Runtime: runtime.Path, RuntimeRoot: runtime.Root, SystemdCgroup: p.facts().Scopes,
		})
		return err
	})
	if err != nil {
		return process, fmt.Errorf("cannot start the shim of pod %s: %w", p.id, err)
	}
	return process, p.holdShim(ctx, process)
}

// startInit gives a pod that shares one PID namespace its first process; other pods need none.
func (p *pod) startInit(ctx context.Context) (process shim.Process, err error) {
	if !p.sharesPID() {
		return process, nil
	}
	err = podInit.Do(ctx, func() (err error) {
		request := shim.InitRequest{Cgroups: p.Cgroups.Dirs(p.facts().Cgroup)}
		if p.initOwns() {
			request.Owned = owned(p.namespacesWanted())
		}
		for _, path := range p.namespaces() {
			request.Namespaces = append(request.Namespaces, path)
		}
		slices.Sort(request.Namespaces)
		if process, err = p.shim().Init(ctx, request); err != nil {
			return err
		}
		return namespace.PinPID(p.namespaceDir(), process.PID)
	})
	if err != nil {
		return process, fmt.Errorf("cannot start the init of pod %s: %w", p.id, err)
	}
	return process, nil
}

func (p *pod) shim() shim.Client    { return shim.Client{Dir: p.podState(p.id)} }
func (p *pod) namespaceDir() string { return filepath.Join(p.podState(p.id), "ns") }
func (p *pod) sharesPID() bool      { return p.namespaceOptions().GetPid() == cri.NamespaceMode_POD }
func (p *pod) onHostNetwork() bool {
	return p.namespaceOptions().GetNetwork() == cri.NamespaceMode_NODE
}
func (p *pod) file(name string) string { return filepath.Join(p.podState(p.id), name) }

// runtime falls back to the default for a pod whose handler is no longer configured, so that it can still be removed.
func (p *pod) runtime() *Runtime {
	if r := p.Runtimes[p.facts().Handler]; r != nil {
		return r
	}
	return p.Runtimes[""]
}

func (p *pod) namespaceOptions() *cri.NamespaceOption {
	return p.facts().Config.Message.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

// ready reports whether containers may be made in the pod.
func (r *podRecord) ready() bool { return !r.ReadyAt.IsZero() && r.StoppingAt.IsZero() && !r.Doomed }

func (r *podRecord) state() cri.PodSandboxState {
	if r.ready() {
		return cri.PodSandboxState_SANDBOX_READY
	}
	return cri.PodSandboxState_SANDBOX_NOTREADY
}

// listed tells whether clients see the pod: one that is still being made is nobody's yet. One that was given up and could not be
// taken down is shown, for somebody to remove it.
func (p *pod) listed() bool { return !p.facts().ReadyAt.IsZero() || p.stuck.Load() }

// checkPodSecurity refuses what the CRI calls invalid and what is not there yet.
func checkPodSecurity(sc *cri.LinuxSandboxSecurityContext) error {
	o := sc.GetNamespaceOptions()
	switch {
	case sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil:
		return fmt.Errorf("config.linux.security_context.run_as_group is set without run_as_user: %w", ErrInvalid)
	case o.GetNetwork() != cri.NamespaceMode_POD && o.GetNetwork() != cri.NamespaceMode_NODE:
		return fmt.Errorf("config.linux.security_context.namespace_options.network is %s, only POD and NODE make sense: %w", o.GetNetwork(), ErrInvalid)
	case o.GetIpc() != cri.NamespaceMode_POD && o.GetIpc() != cri.NamespaceMode_NODE:
		return fmt.Errorf("config.linux.security_context.namespace_options.ipc is %s, only POD and NODE make sense: %w", o.GetIpc(), ErrInvalid)
	case o.GetPid() == cri.NamespaceMode_TARGET:
		return fmt.Errorf("config.linux.security_context.namespace_options.pid is TARGET, which only a container can have: %w", ErrInvalid)
	case cri.NamespaceMode_name[int32(o.GetPid())] == "":
		return fmt.Errorf("config.linux.security_context.namespace_options.pid is %s, only POD, CONTAINER and NODE make sense: %w", o.GetPid(), ErrInvalid)
	case o.GetTargetId() != "":
		return fmt.Errorf("config.linux.security_context.namespace_options.target_id is %q, which only a container can have: %w", o.GetTargetId(), ErrInvalid)
	}
	return nil
}

// longestName is what the kernel takes as a host name (uname(2), __NEW_UTS_LEN).
const longestName = 64

func checkHostname(name string) error {
	if len(name) > longestName {
		return fmt.Errorf("config.hostname %q has %d bytes, and a host name has %d at most: %w", name, len(name), longestName, ErrInvalid)
	}
	return nil
}

func (p *Pods) handlerNames() string {
	var names []string
	for name := range p.Runtimes {
		names = append(names, fmt.Sprintf("%q", name))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func hostname(cfg *cri.PodSandboxConfig) string {
	if name := cfg.GetHostname(); name != "" {
		return name
	}
	name, _ := os.Hostname()
	return name
}

// host is what this machine and the pod's runtime can do together.
func (p *pod) host() oci.Host {
	h := p.Host
	runtime := p.runtime()
	h.Hostname = hostname(&cri.PodSandboxConfig{})
	h.SpecVersion, h.Seccomp, h.RecursiveReadOnly = runtime.SpecVersion, h.Seccomp && runtime.Seccomp, runtime.RecursiveReadOnly
	h.Rlimits = runtime.Rlimits
	return h
}
