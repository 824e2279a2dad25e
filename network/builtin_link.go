package network

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	podInterface = "eth0"
	linkPrefix   = "ek"
)

// linkName is the host's end of a pod's veth pair, as far as the id fits into the 15 characters of an interface name.
func linkName(podID string) string {
	return linkPrefix + podID[:min(len(podID), unix.IFNAMSIZ-1-len(linkPrefix))]
}

// hardwareAddr derives the pod's MAC address from its first IP address. Whoever gets that address next answers under
// the same MAC, so no neighbour cache points at a pod that is gone. 0x0e marks it as unicast and locally
// administered (IEEE 802).
func hardwareAddr(ip netip.Addr) net.HardwareAddr {
	if ip.Is4() {
		return slices.Concat(derivedFrom4, ip.AsSlice())
	}
	sum := sha256.Sum256(ip.AsSlice())
	return slices.Concat(derivedFrom6, sum[:4])
}

// mac is the address of the pod's own end: the one that it asks for, or else the one that goes with its address.
func (p Pod) mac(addrs []netip.Addr) (net.HardwareAddr, error) {
	mac, err := ReadMAC(p.Annotations)
	if err != nil || mac != nil {
		return mac, err
	}
	return hardwareAddr(addrs[0]), nil
}

var derivedFrom4, derivedFrom6 = net.HardwareAddr{0x0e, 0x4b}, net.HardwareAddr{0x0e, 0x6b}

// inside opens the pod's network namespace, and talks to it from here.
func (p Pod) inside() (ns netns.NsHandle, links *netlink.Handle, leave func(), err error) {
	if ns, err = netns.GetFromPath(p.NetNS); err != nil {
		return ns, nil, nil, fmt.Errorf("cannot open network namespace %s: %w", p.NetNS, err)
	}
	if links, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE); err != nil {
		ns.Close()
		return ns, nil, nil, fmt.Errorf("cannot talk to network namespace %s: %w", p.NetNS, err)
	}
	return ns, links, func() { links.Close(); ns.Close() }, nil
}

// connect makes the pod's interface and gives it addresses and routes. The peer is made inside the pod's namespace
// right away: moving it there afterwards would cost a rename and two notifications more. A pair that a broken-off
// call left is completed if it leads into this namespace, and replaced if not.
func (h *host) connect(pod Pod, addrs []netip.Addr, subnets []netip.Prefix, mtu int) error {
	ns, inside, leave, err := pod.inside()
	if err != nil {
		return err
	}
	defer leave()
	mac, err := pod.mac(addrs)
	if err != nil {
		return err
	}
	eth0, err := h.pair(pod, ns, inside, mac, mtu)
	if err != nil {
		return err
	}
	if err := h.enslave(pod.ID); err != nil {
		return err
	}
	if err := configure(inside, eth0, addrs, subnets); err != nil {
		return err
	}
	h.syncCarrier(pod.ID)
	return nil
}

// syncCarrier makes the kernel act on the carrier that came with eth0. The host's end and a bridge without other ports
// were up before it, and such a device drops every packet until the link watch worker gets to it; a first packet lost
// there is sent again after a second. Asking for a device makes the kernel do that work first (since Linux 6.8,
// linkwatch_sync_dev in rtnl_getlink); before 6.8 the worker does it some milliseconds later.
func (h *host) syncCarrier(podID string) {
	h.links.LinkByName(linkName(podID))
	h.links.LinkByIndex(h.bridge.Index)
}

// pair returns the pod's end of the veth pair, made or found.
func (h *host) pair(pod Pod, ns netns.NsHandle, inside *netlink.Handle, mac net.HardwareAddr, mtu int) (netlink.Link, error) {
	err := h.addPair(pod.ID, ns, mac, mtu)
	if errors.Is(err, unix.EEXIST) {
		eth0, findErr := inside.LinkByName(podInterface)
		if findErr == nil && eth0.Attrs().HardwareAddr.String() == mac.String() && h.linked(pod.ID, eth0) {
			return eth0, nil
		}
		if err := h.removeLink(linkName(pod.ID)); err != nil {
			return nil, err
		}
		err = h.addPair(pod.ID, ns, mac, mtu)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot create %s in namespace %s with %s on the host: %w", podInterface, pod.NetNS, linkName(pod.ID), err)
	}
	eth0, err := inside.LinkByName(podInterface)
	if err != nil {
		return nil, fmt.Errorf("cannot find %s in namespace %s: %w", podInterface, pod.NetNS, err)
	}
	return eth0, nil
}

func (h *host) addPair(podID string, ns netns.NsHandle, mac net.HardwareAddr, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Flags = linkName(podID), mtu, net.FlagUp
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1 // else one of each per processor, every one with its own sysfs directory
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerNamespace = podInterface, mac, netlink.NsFd(ns)
	return h.links.LinkAdd(veth)
}

// linked says whether the host's link of the pod and eth0 are the two ends of one pair.
func (h *host) linked(podID string, eth0 netlink.Link) bool {
	outer, err := h.links.LinkByName(linkName(podID))
	return err == nil && outer.Attrs().ParentIndex == eth0.Attrs().Index && eth0.Attrs().ParentIndex == outer.Attrs().Index
}

// enslave puts the host's end into the bridge and labels it with the whole id. Hairpin mode lets a frame return to
// the port it came from: where br_netfilter is loaded, a pod that reaches itself through a host port or a Service
// needs it.
func (h *host) enslave(podID string) error {
	link, err := h.links.LinkByName(linkName(podID))
	if err != nil {
		return fmt.Errorf("cannot find %s: %w", linkName(podID), err)
	}
	if err := h.links.LinkSetMasterByIndex(link, h.bridge.Index); err != nil {
		return fmt.Errorf("cannot put %s into bridge %s: %w", linkName(podID), h.bridge.Name, err)
	}
	if err := h.links.LinkSetHairpin(link, true); err != nil {
		return fmt.Errorf("cannot set hairpin mode on %s: %w", linkName(podID), err)
	}
	if err := h.links.LinkSetAlias(link, podID); err != nil {
		return fmt.Errorf("cannot label %s: %w", linkName(podID), err)
	}
	return nil
}

// configure gives eth0 its addresses and default routes. IPv6 addresses skip duplicate address detection (nodad):
// the books guarantee that they are unique, and the pod would wait a second or more.
func configure(inside *netlink.Handle, eth0 netlink.Link, addrs []netip.Addr, subnets []netip.Prefix) error {
	for _, ip := range addrs {
		p, ok := subnetOf(ip, subnets)
		if !ok {
			return fmt.Errorf("cannot configure %s: no subnet of %v holds it", ip, subnets)
		}
		if err := addAddress(inside, eth0, netip.PrefixFrom(ip, p.Bits())); err != nil {
			return err
		}
	}
	if err := inside.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("cannot bring %s up: %w", podInterface, err)
	}
	for _, ip := range addrs {
		p, _ := subnetOf(ip, subnets)
		gw := gateway(p)
		route := &netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gw.AsSlice()}
		if err := inside.RouteReplace(route); err != nil {
			return fmt.Errorf("cannot set the default route by %s: %w", gw, err)
		}
	}
	return nil
}

func addAddress(links *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := links.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("cannot give %s to %s: %w", p, link.Attrs().Name, err)
	}
	return nil
}

func subnetOf(ip netip.Addr, subnets []netip.Prefix) (netip.Prefix, bool) {
	for _, p := range subnets {
		if p.Contains(ip) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// disconnect removes the pod's interface. A nil error means that neither end exists.
func (h *host) disconnect(podID string) error { return h.removeLink(linkName(podID)) }

// removeLink deletes an interface and returns as soon as no name or index leads to it any more.
//
// The call that deletes lasts 10 to 35 ms longer, in which the kernel waits for other processors to let go of the
// memory (netdev_run_todo: rcu_barrier, reference counts). Nothing can be seen of the device at that point: it has
// left the lists, its name is free, and the kernel has announced RTM_DELLINK. So that announcement is what is waited
// for, and the call ends on its own. It has its own socket: calls through h.links would otherwise queue behind it.
func (h *host) removeLink(name string) error {
	link, err := h.links.LinkByName(name)
	if isLinkNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot look for %s: %w", name, err)
	}
	news, err := nl.SubscribeAt(h.ns, netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return fmt.Errorf("cannot watch %s go: %w", name, err)
	}
	done := make(chan error, 1)
	go func() {
		done <- h.deleteLink(link)
		news.Close() // ends the wait below, whatever was or was not announced
	}()
	if awaitGone(news, int32(link.Attrs().Index)) {
		return nil
	}
	if err := <-done; err != nil {
		return fmt.Errorf("cannot delete %s: %w", name, err)
	}
	return nil
}

func (h *host) deleteLink(link netlink.Link) error {
	own, err := netlink.NewHandleAt(h.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer own.Close()
	err = own.LinkDel(link)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// awaitGone reports that the kernel announced the end of the interface; false when the socket broke or was closed.
// The bridge announces the end of its port first, in its own address family.
func awaitGone(news *nl.NetlinkSocket, index int32) bool {
	for {
		messages, _, err := news.Receive()
		if err != nil {
			return false
		}
		for _, m := range messages {
			if m.Header.Type != unix.RTM_DELLINK {
				continue
			}
			if info := nl.DeserializeIfInfomsg(m.Data); info.Family == unix.AF_UNSPEC && info.Index == index {
				return true
			}
		}
	}
}

func isLinkNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// podLinks returns the links in our bridge that bear our naming, by name, with the pod's id where the label is there.
func (h *host) podLinks() (map[string]string, error) {
	if h.bridge.Index == 0 {
		return nil, nil // without a bridge nothing is in it, but links of other engines that are in no bridge yet look alike
	}
	all, err := h.links.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("cannot list links: %w", err)
	}
	found := map[string]string{}
	for _, link := range all {
		a := link.Attrs()
		if link.Type() == "veth" && a.MasterIndex == h.bridge.Index && strings.HasPrefix(a.Name, linkPrefix) {
			found[a.Name] = a.Alias
		}
	}
	return found, nil
}
