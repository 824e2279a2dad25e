package network

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// runtimeArgs are the CNI_ARGS that plugins for Kubernetes expect from every runtime. IgnoreUnknown lets the others
// pass over them.
func runtimeArgs(pod Pod) [][2]string {
	return [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", pod.Namespace},
		{"K8S_POD_NAME", pod.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", pod.ID},
		{"K8S_POD_UID", pod.UID},
	}
}

// capabilityArgs are the well-known ones of the specification's CONVENTIONS.md. libcni hands each plugin those that
// it declares.
func capabilityArgs(pod Pod, podCIDR string) (map[string]any, error) {
	args := map[string]any{}
	if len(pod.Annotations) > 0 {
		args["io.kubernetes.cri.pod-annotations"] = pod.Annotations
	}
	ports, err := portMappings(pod.Ports)
	if err != nil {
		return nil, err
	}
	if len(ports) > 0 {
		args["portMappings"] = ports
	}
	limits, err := bandwidth(pod.Annotations)
	if err != nil {
		return nil, err
	}
	if len(limits) > 0 {
		args["bandwidth"] = limits
	}
	mac, err := ReadMAC(pod.Annotations)
	if err != nil {
		return nil, err
	}
	if mac != nil {
		args["mac"] = mac.String()
	}
	if d := pod.DNS; len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		args["dns"] = map[string]any{"servers": d.Servers, "searches": d.Searches, "options": d.Options}
	}
	if podCIDR != "" {
		args["ipRanges"] = ipRanges(podCIDR)
	}
	return args, nil
}

func portMappings(list []Port) ([]map[string]any, error) {
	wanted, err := hostPorts(list)
	var mappings []map[string]any
	for _, p := range wanted {
		m := map[string]any{"hostPort": p.HostPort, "containerPort": p.ContainerPort, "protocol": p.Protocol}
		if p.HostIP.IsValid() {
			m["hostIP"] = p.HostIP.String()
		}
		mappings = append(mappings, m)
	}
	return mappings, err
}

// bandwidth is the capability of that name: rates and bursts in bits.
func bandwidth(annotations map[string]string) (map[string]any, error) {
	b, err := ReadBandwidth(annotations)
	limits := map[string]any{}
	if b.Ingress > 0 {
		limits["ingressRate"], limits["ingressBurst"] = b.Ingress, burst(b.Ingress)
	}
	if b.Egress > 0 {
		limits["egressRate"], limits["egressBurst"] = b.Egress, burst(b.Egress)
	}
	return limits, err
}

func ipRanges(cidr string) [][]map[string]string {
	var ranges [][]map[string]string
	for _, s := range strings.Split(cidr, ",") {
		ranges = append(ranges, []map[string]string{{"subnet": strings.TrimSpace(s)}})
	}
	return ranges
}

// readResult takes the addresses of the pod's own end: those of an interface with a sandbox, or of none at all, as
// results before version 0.3 had them. Those of eth0 come first, in the plugin's order.
func readResult(r types.Result) (Result, error) {
	got, err := types100.NewResultFromResult(r)
	if err != nil {
		return Result{}, fmt.Errorf("cannot read the plugins' result: %w", err)
	}
	result := Result{Interface: podInterface, DNS: DNS{got.DNS.Nameservers, got.DNS.Search, got.DNS.Options}}
	if d := got.DNS.Domain; d != "" && len(result.DNS.Searches) == 0 {
		result.DNS.Searches = []string{d}
	}
	var others []netip.Addr
	for _, c := range got.IPs {
		ip, ok := netip.AddrFromSlice(c.Address.IP)
		name, inside := sandboxInterface(got, c)
		switch {
		case !ok || !inside:
		case name == "" || name == podInterface:
			result.IPs = append(result.IPs, ip.Unmap())
		default:
			others = append(others, ip.Unmap())
		}
	}
	result.IPs = append(result.IPs, others...)
	if len(result.IPs) == 0 {
		return Result{}, fmt.Errorf("the plugins gave the pod no address")
	}
	return result, nil
}

func sandboxInterface(r *types100.Result, c *types100.IPConfig) (name string, inside bool) {
	if c.Interface == nil {
		return "", true
	}
	i := *c.Interface
	if i < 0 || i >= len(r.Interfaces) || r.Interfaces[i] == nil {
		return "", false
	}
	return r.Interfaces[i].Name, r.Interfaces[i].Sandbox != ""
}
