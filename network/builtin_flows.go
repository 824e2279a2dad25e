package network

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A client that keeps sending UDP from one port stays in one conntrack entry, and an entry keeps the translation it
// was made with. So one that was made while the port was closed, or for the pod that had it before, would hold that
// client off a new pod for as long as it keeps trying. An SCTP client often has one port for life, too, and begins its
// association anew in the same entry. TCP clients come back with a new port or a reset.

// forgetUntranslated drops UDP flows to the ports which nobody translated. Those of SCTP last some seconds only, as nobody
// answers (nf_conntrack_proto_sctp.c, COOKIE_WAIT).
func (h *host) forgetUntranslated(list []mapping) error {
	ports := map[uint16]bool{}
	for _, m := range list {
		if m.Protocol == "udp" {
			ports[m.HostPort] = true
		}
	}
	if len(ports) == 0 {
		return nil
	}
	return h.forget(func(f *netlink.ConntrackFlow) bool {
		return f.Forward.Protocol == unix.IPPROTO_UDP && ports[f.Forward.DstPort] &&
			f.Forward.DstIP.Equal(f.Reverse.SrcIP) && f.Forward.SrcIP.Equal(f.Reverse.DstIP)
	})
}

// forgetTranslated drops flows that were translated to one of the pod's addresses, of the protocols among its ports. Which
// port they came by does not matter when the pod goes, and the library cannot read ports of SCTP.
func (h *host) forgetTranslated(list []mapping, pod []netip.Addr) error {
	used := map[byte]bool{}
	for _, m := range list {
		if m.Protocol != "tcp" {
			used[protocols[m.Protocol]] = true
		}
	}
	if len(used) == 0 {
		return nil
	}
	return h.forget(func(f *netlink.ConntrackFlow) bool {
		answers, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
		return used[f.Forward.Protocol] && !f.Forward.DstIP.Equal(f.Reverse.SrcIP) && slices.Contains(pod, answers)
	})
}

func (h *host) forget(match flowFilter) error {
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := h.links.ConntrackDeleteFilters(netlink.ConntrackTable, family, match); err != nil {
			return fmt.Errorf("cannot drop stale flows: %w", err)
		}
	}
	return nil
}

type flowFilter func(*netlink.ConntrackFlow) bool

func (f flowFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool { return f(flow) }
