// Package network gives pods their addresses. Two providers stand behind one small interface: CNI runs the plugins of
// the node's conflists, Builtin does bridge, addresses, masquerade and host ports in process, without any exec.
package network

import (
	"context"
	"errors"
	"net/netip"
)

// Provider is what the life of a pod needs from its network. Every method is safe to call at any time, from many
// goroutines, and again after a crash.
type Provider interface {
	// Attach connects the pod's network namespace. It records what it is about to do before it does it, so that Detach
	// undoes a half-done Attach. Attaching an attached pod gives the same result.
	Attach(ctx context.Context, pod Pod) (Result, error)
	// Detach releases all that Attach took. A nil error means the pod holds nothing, whoever released it, and also when
	// the namespace is gone or the machine rebooted.
	Detach(ctx context.Context, pod Pod) error
	// Check compares what the pod has with what Attach gave it, and changes nothing. The error says what is wrong, or matches
	// ErrUncheckable.
	Check(ctx context.Context, pod Pod) error
	// Sweep detaches what belongs to no living pod.
	Sweep(ctx context.Context, live func(podID string) bool) error
	// Ready returns nil when a pod could be attached now, or the reason why not.
	Ready() error
	// SetPodCIDR takes the node's pod range from the kubelet (UpdateRuntimeConfig), one or two comma-separated prefixes.
	SetPodCIDR(cidr string) error
	// Info is for crictl info and for humans: JSON-able values by name.
	Info() map[string]any
}

// Pod is what a provider knows of a pod.
type Pod struct {
	ID          string
	Namespace   string // Kubernetes namespace
	Name        string
	UID         string
	NetNS       string // path of the pinned network namespace
	Ports       []Port
	Annotations map[string]string
	DNS         DNS // the pod's own resolver settings, for CNI plugins with the capability "dns"; may be empty
}

// Port is a host port. HostPort 0 entries are not passed down.
type Port struct {
	Protocol      string     // tcp, udp, sctp
	HostIP        netip.Addr // zero: any address
	HostPort      uint16
	ContainerPort uint16
}

// Result is what a pod got. IPs lists the primary address first.
type Result struct {
	IPs       []netip.Addr
	Interface string // name inside the pod, "eth0"
	DNS       DNS    // what a CNI plugin wants in resolv.conf; usually empty
}

// DNS as a CNI result or a pod's request carries it.
type DNS struct{ Servers, Searches, Options []string }

// ErrUncheckable matches the error of a Check that has no way to tell.
var ErrUncheckable = errors.New("the network cannot be checked")

// ErrNotReady matches errors of a network that cannot attach pods yet.
var ErrNotReady = errors.New("network is not ready")
