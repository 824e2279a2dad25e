package network

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// checkOverlap refuses a pod range where another link of the machine is: packets to pods would go there. An address counts
// with all that it says is on its link, wider than the range or not, since neighbours and gateways of the node may be among the pods'
// addresses. A route counts where it is as narrow as the range, so that the bridge's does not go before it; the default
// route and the 10.0.0.0/8 of a tunnel are none in this sense.
func (h *host) checkOverlap() error {
	all, err := h.links.LinkList()
	if err != nil {
		return fmt.Errorf("cannot list links: %w", err)
	}
	names := map[int]string{}
	for _, link := range all {
		names[link.Attrs().Index] = link.Attrs().Name
	}
	addrs, err := h.links.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("cannot list addresses: %w", err)
	}
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok && names[a.LinkIndex] != h.bridge.Name {
			if err := h.refuseOverlap(p, p.Overlaps, "address", names[a.LinkIndex]); err != nil {
				return err
			}
		}
	}
	routes, err := h.links.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("cannot list routes: %w", err)
	}
	for _, r := range routes {
		if p, ok := prefixOf(r.Dst); ok && names[r.LinkIndex] != h.bridge.Name {
			inside := func(subnet netip.Prefix) bool { return subnet.Contains(p.Addr()) && p.Bits() >= subnet.Bits() }
			if err := h.refuseOverlap(p, inside, "route", names[r.LinkIndex]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *host) refuseOverlap(p netip.Prefix, overlaps func(netip.Prefix) bool, what, link string) error {
	for _, subnet := range h.subnets {
		if overlaps(subnet) {
			return fmt.Errorf("%w: pod range %s overlaps with the %s %s of link %s: choose another range (network.builtin.subnets)", ErrNotReady, subnet, what, p, link)
		}
	}
	return nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	ip = ip.Unmap()
	return netip.PrefixFrom(ip, ones), ok && ones > 0 && bits == ip.BitLen()
}
