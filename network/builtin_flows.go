package network

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A client that keeps sending UDP from one port stays in one conntrack entry, and an entry keeps the translation it
// was made with. So one that was made while the port was closed, or for the pod that had it before, would hold that
// client off a new pod for as long as it keeps trying. TCP clients come back with a new port or a reset.

// forgetUntranslated drops UDP flows to the ports which nobody translated.
func (h *host) forgetUntranslated(list []mapping) error {
	return h.forget(list, func(f *netlink.ConntrackFlow) bool {
		return f.Forward.DstIP.Equal(f.Reverse.SrcIP) && f.Forward.SrcIP.Equal(f.Reverse.DstIP)
	})
}

// forgetTranslated drops UDP flows to the ports which lead to one of the addresses.
func (h *host) forgetTranslated(list []mapping, pod []netip.Addr) error {
	return h.forget(list, func(f *netlink.ConntrackFlow) bool {
		for _, addr := range pod {
			if f.Reverse.SrcIP.Equal(addr.AsSlice()) {
				return true
			}
		}
		return false
	})
}

func (h *host) forget(list []mapping, match func(*netlink.ConntrackFlow) bool) error {
	wanted := map[uint16]bool{}
	for _, m := range list {
		if m.Protocol == "udp" {
			wanted[m.HostPort] = true
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	filter := flowFilter(func(f *netlink.ConntrackFlow) bool {
		return f.Forward.Protocol == unix.IPPROTO_UDP && wanted[f.Forward.DstPort] && match(f)
	})
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := h.links.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter); err != nil {
			return fmt.Errorf("cannot drop stale UDP flows: %w", err)
		}
	}
	return nil
}

type flowFilter func(*netlink.ConntrackFlow) bool

func (f flowFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool { return f(flow) }
