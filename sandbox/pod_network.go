package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/effect"
	"github.com/evenkeel/evenkeel/internal/namespace"
	"github.com/evenkeel/evenkeel/network"
)

var podNetwork = effect.New("pod.network")

type networkDNS = network.DNS

// attach connects the pod to its network and returns its addresses.
func (p *pod) attach(ctx context.Context) (ips []string, dns network.DNS, err error) {
	if p.onHostNetwork() {
		return nil, dns, nil
	}
	var got network.Result
	err = podNetwork.Do(ctx, func() (err error) {
		if got, err = p.Network.Attach(ctx, p.networkPod()); err != nil {
			return err
		}
		return namespace.SetOfLinks(p.namespaceDir(), p.namespacesWanted()) // they go with the namespace
	})
	if errors.Is(err, namespace.ErrSysctl) {
		return nil, dns, fmt.Errorf("cannot connect pod %s to the network: %w: %w", p.id, err, ErrInvalid)
	} else if err != nil {
		return nil, dns, fmt.Errorf("cannot connect pod %s to the network: %w", p.id, err)
	}
	for _, ip := range got.IPs {
		ips = append(ips, ip.String())
	}
	return ips, got.DNS, nil
}

func (p *pod) networkPod() network.Pod {
	cfg := p.facts().Config.Message
	return network.Pod{
		ID: p.id, Namespace: cfg.GetMetadata().GetNamespace(), Name: cfg.GetMetadata().GetName(), UID: cfg.GetMetadata().GetUid(),
		DNS:   network.DNS{Servers: cfg.GetDnsConfig().GetServers(), Searches: cfg.GetDnsConfig().GetSearches(), Options: cfg.GetDnsConfig().GetOptions()},
		NetNS: filepath.Join(p.namespaceDir(), "net"), Ports: hostPorts(cfg.GetPortMappings()), Annotations: cfg.GetAnnotations(),
	}
}

// hostPorts keeps the mappings that ask for a host port: 0 means none (CRI, PortMapping).
func hostPorts(mappings []*cri.PortMapping) []network.Port {
	var ports []network.Port
	for _, m := range mappings {
		if m.GetHostPort() == 0 {
			continue
		}
		ip, _ := netip.ParseAddr(m.GetHostIp()) // checkPorts has seen it
		ports = append(ports, network.Port{
			Protocol: strings.ToLower(m.GetProtocol().String()), HostIP: ip,
			HostPort: uint16(m.GetHostPort()), ContainerPort: uint16(m.GetContainerPort()),
		})
	}
	return ports
}

func checkPorts(mappings []*cri.PortMapping) error {
	taken := portsTaken{}
	for i, m := range mappings {
		field := fmt.Sprintf("config.port_mappings[%d]", i)
		ip, err := netip.ParseAddr(m.GetHostIp())
		first, again := taken.find(m, ip)
		switch {
		case m.GetHostIp() != "" && err != nil:
			return fmt.Errorf("%s.host_ip %q is not an IP address: %w", field, m.GetHostIp(), ErrInvalid)
		case m.GetHostPort() < 0 || m.GetHostPort() > 65535 || m.GetContainerPort() < 0 || m.GetContainerPort() > 65535:
			return fmt.Errorf("%s: host_port %d and container_port %d must lie between 0 and 65535: %w", field, m.GetHostPort(), m.GetContainerPort(), ErrInvalid)
		case cri.Protocol_name[int32(m.GetProtocol())] == "":
			return fmt.Errorf("%s.protocol is %s, and only TCP, UDP and SCTP are known: %w", field, m.GetProtocol(), ErrInvalid)
		case m.GetHostPort() == 0:
			continue // no port of the host's is asked for
		case m.GetContainerPort() == 0:
			return fmt.Errorf("%s.container_port is 0, and host_port %d must lead somewhere: %w", field, m.GetHostPort(), ErrInvalid)
		case again && mappings[first].GetContainerPort() != m.GetContainerPort():
			return fmt.Errorf("%s.host_port %d leads elsewhere in config.port_mappings[%d] already: %w", field, m.GetHostPort(), first, ErrInvalid)
		}
		taken.add(m, ip, i)
	}
	return nil
}

// portsTaken knows the mappings that have a port already, by protocol, address and port. No address means every one of both families,
// and 0.0.0.0 and :: every one of theirs: to the kernel they are one key.
type portsTaken map[string]int

func (t portsTaken) find(m *cri.PortMapping, ip netip.Addr) (first int, again bool) {
	for _, key := range portKeys(m, ip) {
		if first, again = t[key]; again {
			return first, true
		}
	}
	return 0, false
}

func (t portsTaken) add(m *cri.PortMapping, ip netip.Addr, i int) {
	for _, key := range portKeys(m, ip) {
		t[key] = i
	}
}

func portKeys(m *cri.PortMapping, ip netip.Addr) []string {
	addrs := []netip.Addr{ip.Unmap().WithZone("")}
	if !ip.IsValid() {
		addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	var keys []string
	for _, addr := range addrs {
		keys = append(keys, fmt.Sprint(m.GetProtocol(), addr, m.GetHostPort()))
	}
	return keys
}

// checkNetworkAnnotations leaves those alone that nobody will read: a pod on the node's network has none of its own.
func checkNetworkAnnotations(cfg *cri.PodSandboxConfig) error {
	if cfg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() != cri.NamespaceMode_POD {
		return nil
	}
	_, rates := network.ReadBandwidth(cfg.GetAnnotations())
	_, mac := network.ReadMAC(cfg.GetAnnotations())
	if err := errors.Join(rates, mac); err != nil {
		return fmt.Errorf("config.annotations: %w: %w", err, ErrInvalid)
	}
	return nil
}

// A NetworkFinding is what the network says of a pod; the zero value says that all is well.
type NetworkFinding struct {
	Broken  error // what is wrong
	Unknown error // why nobody can tell
}

// CheckNetwork has the network compare what a ready pod has with what it was given. It never runs by itself: CNI plugins are programs.
func (p *Pods) CheckNetwork(ctx context.Context, id string) (NetworkFinding, error) {
	pod, err := p.index.pod(id)
	if err != nil {
		return NetworkFinding{}, err
	}
	if err := pod.attached(); err != nil {
		return NetworkFinding{}, err
	}
	if pod.onHostNetwork() {
		return NetworkFinding{Unknown: fmt.Errorf("%w: pod %s uses the node's own", network.ErrUncheckable, pod.id)}, nil
	}
	err = p.Network.Check(ctx, pod.networkPod())
	if ctx.Err() != nil {
		return NetworkFinding{}, fmt.Errorf("cannot check the network of pod %s: %w", pod.id, context.Cause(ctx))
	}
	if err := pod.attached(); err != nil { // it was stopped meanwhile, and has lost its network for that
		return NetworkFinding{}, err
	}
	if errors.Is(err, network.ErrUncheckable) {
		return NetworkFinding{Unknown: err}, nil
	}
	return NetworkFinding{Broken: err}, nil
}

func (p *pod) attached() error {
	if !p.listed() {
		return fmt.Errorf("pod sandbox %q: %w", p.id, ErrNotFound)
	}
	if !p.facts().ready() {
		return fmt.Errorf("cannot check the network of pod %s: it is not ready: %w", p.id, ErrState)
	}
	return nil
}

// namespaces lists the files of the pod's pinned namespaces.
func (p *pod) namespaces() map[specs.LinuxNamespaceType]string {
	files := map[specs.LinuxNamespaceType]string{}
	for kind, name := range map[specs.LinuxNamespaceType]string{
		specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts", specs.PIDNamespace: "pid",
		specs.UserNamespace: "user",
	} {
		file := filepath.Join(p.namespaceDir(), name)
		if _, err := os.Lstat(file); err == nil {
			files[kind] = file
		}
	}
	return files
}
