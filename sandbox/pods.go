package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/internal/cgroup"
	"github.com/evenkeel/evenkeel/internal/hostpath"
	"github.com/evenkeel/evenkeel/internal/systemd"
	"github.com/evenkeel/evenkeel/network"
	"github.com/evenkeel/evenkeel/oci"
	"github.com/evenkeel/evenkeel/oci/runc"
	"github.com/evenkeel/evenkeel/shim"
)

// Sentinels; cri/errors.go maps each to a gRPC code.
var (
	ErrNotFound     = errors.New("not found")
	ErrInvalid      = errors.New("invalid request")
	ErrState        = errors.New("wrong state")
	ErrUnsupported  = errors.New("not supported")
	ErrUnknownState = errors.New("state is unknown") // the shim is silent
	ErrTimeout      = errors.New("deadline exceeded")
)

// How long detached work may take. A caller may stop waiting earlier; the work goes on and a retry joins it.
const (
	podBuildLimit       = 4 * time.Minute // the kubelet's own deadline for RunPodSandbox
	containerBuildLimit = 2 * time.Minute
	teardownLimit       = 90 * time.Second
)

// Runtime is one handler of the Status answer.
type Runtime struct {
	runc.Runc
	Version           string
	SpecVersion       string // newest ociVersion it accepts
	Seccomp           bool
	RecursiveReadOnly bool
	UserNamespaces    bool
	NoCheckpoint      bool                // it is built without
	Rlimits           []specs.POSIXRlimit // of every container's first process; empty: the engine's own
	CreateLimit       time.Duration       // how long it may take to make a container; 0: a minute
}

// Pods is the life of pods; Containers that of their containers. They share one index.
type Pods struct {
	Root         string              // holds pods/<id>, containers/<id> and trash; survives reboots
	State        string              // holds pods/<id>, containers/<id> and runc's state; does not
	Shim         string              // the shim program
	CgroupParent string              // for pods whose request names none; a slice's where Scopes is set
	BootID       string              // of this boot
	Runtimes     map[string]*Runtime // by handler name; "" is the default
	Images       *image.Store
	Network      network.Provider
	Cgroups      *cgroup.Tree
	Systemd      *systemd.Units // where systemd is the init; else nil
	Scopes       bool           // containers of new pods are scopes of systemd's: its cgroup driver
	Host         oci.Host       // what this machine can do, without what depends on the runtime
	Log          *slog.Logger
	Logs         shim.LogPolicy // of containers whose pod says nothing about their logs
	Plugins      Plugins        // hear of pods and containers, and may change them; nil: there are none
	// NoUserNamespaces says why this machine cannot give pods user namespaces (ProbeUserNamespaces); nil: it can.
	NoUserNamespaces error
	// BrokenRuntimes are the handlers that are configured and cannot be used, with the reason.
	BrokenRuntimes map[string]error

	paths  *hostpath.Finder
	index  *index
	waste  *trash
	events feed
	bygone bygone
	layers layerCounter
	// projects says that the file system counts writable layers. Written by Load only.
	projects bool
	claiming sync.Mutex // guards the choice of a project that no container has
	swept    atomic.Uint64
	// quarantine holds the ids of records that cannot be used: nothing they might own may be touched. Written by Open only.
	quarantine  map[string]bool
	quarantined []string // their directories
}

// Containers is the life of containers; made by (*Pods).Open.
type Containers struct{ pods *Pods }

func (p *Pods) podRoot(id string) string        { return filepath.Join(p.Root, "pods", id) }
func (p *Pods) podState(id string) string       { return filepath.Join(p.State, "pods", id) }
func (p *Pods) containerRoot(id string) string  { return filepath.Join(p.Root, "containers", id) }
func (p *Pods) containerState(id string) string { return filepath.Join(p.State, "containers", id) }

// newID returns 64 lower-case hex digits: cAdvisor and the kubelet recognise ids by that shape.
func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Run makes a pod and returns its id once it is READY. A repeated request joins the running one or finds its pod.
func (p *Pods) Run(ctx context.Context, cfg *cri.PodSandboxConfig, handler string) (string, error) {
	if err := p.checkPod(cfg, handler); err != nil {
		return "", err
	}
	whole := ctx
	ctx, stop := beforeDeadline(ctx)
	defer stop()
	for {
		pod, late := p.claimPod(ctx, cfg, handler)
		err := pod.built.wait(ctx)
		switch r := pod.facts(); {
		case ctx.Err() != nil:
			return "", fmt.Errorf("pod %s is not up yet, and the work goes on: %s%s: %w", keyOfPod(cfg.Metadata), &pod.doing, pod.silenceAtStart(whole), context.Cause(ctx))
		case late && (r.Doomed || r.ReadyAt.IsZero()): // a removal that did not finish: finish it, then begin anew
			if err := pod.remove(ctx); err != nil {
				return "", fmt.Errorf("pod %s still exists as %s and cannot be removed: %w", keyOfPod(cfg.Metadata), pod.id, err)
			}
		case err != nil:
			return "", err
		case !r.ready():
			return "", fmt.Errorf("pod %s was stopped and still exists as %s: remove it or raise the attempt: %w", keyOfPod(cfg.Metadata), pod.id, ErrState)
		default:
			return pod.id, nil
		}
	}
}

// claimPod finds the pod of this key, or begins to build it. The build belongs to no caller: it goes on when the first one leaves.
// Late means that the pod had been built, or given up, before this request came.
func (p *Pods) claimPod(ctx context.Context, cfg *cri.PodSandboxConfig, handler string) (found *pod, late bool) {
	fresh := p.newPod(podRecord{
		ID: newID(), BootID: p.BootID, Handler: handler, CreatedAt: time.Now(),
		Config: document[*cri.PodSandboxConfig]{cfg},
	})
	if old := p.index.claimPod(fresh); old != nil {
		return old, old.built.ended()
	}
	go fresh.build(context.WithoutCancel(ctx))
	return fresh, false
}

// Stop ends everything that runs in the pod and releases what it holds. A pod that does not exist is stopped.
func (p *Pods) Stop(ctx context.Context, id string) error {
	pod, err := p.index.pod(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	return pod.stop(ctx)
}

// Remove stops the pod if need be and forgets it with its containers. A pod that does not exist is removed.
func (p *Pods) Remove(ctx context.Context, id string) error {
	pod, err := p.index.pod(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	return pod.remove(ctx)
}

// Known reports whether a pod or container of this id exists or may exist, so that nothing of its is a leftover.
func (p *Pods) Known(id string) bool {
	p.index.mu.RLock()
	defer p.index.mu.RUnlock()
	return p.index.pods[id] != nil || p.index.containers[id] != nil || p.quarantine[id]
}

// CheckHandler refuses a handler that pods cannot use, and says why.
func (p *Pods) CheckHandler(name string) error {
	if err := p.BrokenRuntimes[name]; err != nil {
		return fmt.Errorf("runtime handler %q is configured and cannot be used: %w: %w", name, err, ErrInvalid)
	}
	if p.Runtimes[name] == nil {
		return fmt.Errorf("no runtime handler %q is configured, only %s: %w", name, p.handlerNames(), ErrInvalid)
	}
	return nil
}

// checkPod finds what is wrong with a request before anything is done for it.
func (p *Pods) checkPod(cfg *cri.PodSandboxConfig, handler string) error {
	m := cfg.GetMetadata()
	switch {
	case m.GetName() == "" || m.GetNamespace() == "" || m.GetUid() == "":
		return fmt.Errorf("config.metadata needs name, namespace and uid (name %q, namespace %q, uid %q): %w", m.GetName(), m.GetNamespace(), m.GetUid(), ErrInvalid)
	}
	if err := p.CheckHandler(handler); err != nil {
		return err
	}
	if err := p.checkCgroupParent(cfg.GetLinux().GetCgroupParent()); err != nil {
		return err
	}
	if err := checkHostname(cfg.GetHostname()); err != nil {
		return err
	}
	if err := checkPorts(cfg.GetPortMappings()); err != nil {
		return err
	}
	if err := checkNetworkAnnotations(cfg); err != nil {
		return err
	}
	if err := p.checkUserNamespace(cfg, handler); err != nil {
		return err
	}
	if err := p.checkLabel(cfg); err != nil {
		return err
	}
	return checkPodSecurity(cfg.GetLinux().GetSecurityContext())
}

// Empty reports whether there is no pod, nor the remains of one.
func (p *Pods) Empty() bool { return len(p.index.allPods()) == 0 && len(p.quarantine) == 0 }
