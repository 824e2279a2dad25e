package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/evenkeel/evenkeel/internal/atomicfile"
)

// The kubelet sends the node's pod range when it starts or when the range changes, not when the engine restarts. So
// it is kept.
func podCIDRFile(dir string) string { return filepath.Join(dir, "pod-cidr") }

func writePodCIDR(dir, cidr string) error {
	if readPodCIDR(dir) == cidr {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot keep the pod range: %w", err)
	}
	return atomicfile.Write(podCIDRFile(dir), []byte(cidr), 0o600)
}

// readPodCIDR returns "" when none is known; a damaged one is refused by parseSubnets like any other nonsense.
func readPodCIDR(dir string) string {
	data, err := os.ReadFile(podCIDRFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// parseSubnets reads one or two comma-separated prefixes, at most one of each family, the primary one first.
func parseSubnets(cidr string) ([]netip.Prefix, error) {
	var subnets []netip.Prefix
	for _, s := range strings.Split(cidr, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return nil, err
		}
		subnets = append(subnets, p)
	}
	return checkSubnets(subnets)
}

// checkSubnets returns the prefixes without host bits.
func checkSubnets(list []netip.Prefix) ([]netip.Prefix, error) {
	var subnets []netip.Prefix
	for i, p := range list {
		if !p.IsValid() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%s is not a subnet", p)
		}
		if i > 0 && p.Addr().Is4() == list[0].Addr().Is4() || i > 1 {
			return nil, fmt.Errorf("%v has more than one subnet of a family", list)
		}
		if hosts([]netip.Prefix{p}) == 0 {
			return nil, fmt.Errorf("%s has no room for a pod beside network, gateway and broadcast address", p)
		}
		subnets = append(subnets, p.Masked())
	}
	return subnets, nil
}
