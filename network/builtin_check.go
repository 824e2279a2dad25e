package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// Check compares bridge, link, addresses, routes, host ports and forwarding with the books, and finds all that differs.
func (b *Builtin) Check(ctx context.Context, pod Pod) error {
	release, err := b.turns.take(ctx, pod.ID)
	if err != nil {
		return err
	}
	defer release()
	if err := b.checkPod(ctx, pod); err != nil {
		return fmt.Errorf("built-in network of pod %s: %w", pod.ID, err)
	}
	return nil
}

func (b *Builtin) checkPod(ctx context.Context, pod Pod) error {
	h, err := b.open()
	if err != nil {
		return err
	}
	addrs, err := b.addresses().of(pod.ID, h.subnets)
	if err != nil {
		return err
	}
	if len(addrs) == 0 {
		return errors.New("the pod holds no address")
	}
	return errors.Join(h.checkOuter(pod.ID, addrs), h.checkInner(pod, addrs), b.checkPorts(ctx, h, pod, addrs), h.checkForwarding())
}

// checkForwarding looks at what the next pod, or question for the status, would put right.
func (h *host) checkForwarding() error {
	wrong, err := h.wrong(h.forwarding())
	for _, s := range wrong {
		err = errors.Join(err, errors.New(s.String()))
	}
	return err
}

// checkOuter looks at the host's end. The bridge is asked for by name: somebody may have made another one in its place.
func (h *host) checkOuter(podID string, addrs []netip.Addr) error {
	bridge, err := h.links.LinkByName(h.bridge.Name)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", h.bridge.Name, err)
	}
	errs := []error{checkUp(bridge)}
	own, err := addressesOf(h.links, bridge)
	if err != nil {
		return err
	}
	for _, ip := range addrs {
		if !slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Masked().Contains(ip) }) {
			errs = append(errs, fmt.Errorf("bridge %s has no address in the range of %s", h.bridge.Name, ip))
		}
	}
	link, err := h.links.LinkByName(linkName(podID))
	switch {
	case err != nil:
		errs = append(errs, fmt.Errorf("link %s: %w", linkName(podID), err))
	case link.Attrs().MasterIndex != bridge.Attrs().Index:
		errs = append(errs, fmt.Errorf("link %s is not in bridge %s", linkName(podID), h.bridge.Name), checkUp(link))
	default:
		errs = append(errs, checkUp(link))
	}
	return errors.Join(errs...)
}

// checkInner looks at the pod's end.
func (h *host) checkInner(pod Pod, addrs []netip.Addr) error {
	_, inside, leave, err := pod.inside()
	if err != nil {
		return err
	}
	defer leave()
	eth0, err := inside.LinkByName(podInterface)
	if err != nil {
		return fmt.Errorf("%s in the pod: %w", podInterface, err)
	}
	errs := []error{checkUp(eth0), checkMAC(pod, eth0, addrs)}
	if !h.linked(pod.ID, eth0) {
		errs = append(errs, fmt.Errorf("%s in the pod is not the other end of %s", podInterface, linkName(pod.ID)))
	}
	have, err := addressesOf(inside, eth0)
	if err != nil {
		return err
	}
	for _, ip := range addrs {
		if !slices.ContainsFunc(have, func(p netip.Prefix) bool { return p.Addr() == ip }) {
			errs = append(errs, fmt.Errorf("%s in the pod lacks its address %s", podInterface, ip))
		}
		if !hasDefaultRoute(inside, eth0, ip) {
			errs = append(errs, fmt.Errorf("%s in the pod lacks the default route that goes with %s", podInterface, ip))
		}
	}
	return errors.Join(errs...)
}

func checkUp(link netlink.Link) error {
	if link.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("%s is down", link.Attrs().Name)
	}
	return nil
}

func checkMAC(pod Pod, eth0 netlink.Link, addrs []netip.Addr) error {
	want, err := pod.mac(addrs)
	if err == nil && !bytes.Equal(want, eth0.Attrs().HardwareAddr) {
		err = fmt.Errorf("%s in the pod has the hardware address %s, not %s", podInterface, eth0.Attrs().HardwareAddr, want)
	}
	return err
}

func addressesOf(links *netlink.Handle, link netlink.Link) ([]netip.Prefix, error) {
	list, err := links.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("cannot read the addresses of %s: %w", link.Attrs().Name, err)
	}
	var addrs []netip.Prefix
	for _, a := range list {
		ip, _ := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		addrs = append(addrs, netip.PrefixFrom(ip.Unmap(), ones))
	}
	return addrs, nil
}

func hasDefaultRoute(links *netlink.Handle, link netlink.Link, ip netip.Addr) bool {
	family := netlink.FAMILY_V4
	if ip.Is6() {
		family = netlink.FAMILY_V6
	}
	routes, _ := links.RouteListFiltered(family, &netlink.Route{LinkIndex: link.Attrs().Index}, netlink.RT_FILTER_OIF)
	return slices.ContainsFunc(routes, func(r netlink.Route) bool {
		if r.Dst == nil {
			return r.Gw != nil
		}
		ones, _ := r.Dst.Mask.Size()
		return ones == 0 && r.Gw != nil
	})
}

// checkPorts asks the kernel for each of the pod's ports: one that is in no map, or leads elsewhere, does not work.
func (b *Builtin) checkPorts(ctx context.Context, h *host, pod Pod, addrs []netip.Addr) error {
	wanted, err := hostPorts(pod.Ports)
	if err != nil || len(wanted) == 0 {
		return err
	}
	release, err := b.turns.take(ctx, hostTurn)
	if err != nil {
		return err
	}
	defer release()
	if present, err := h.rules.present(); err != nil || !present {
		return errors.Join(fmt.Errorf("host ports: there is no nftables table inet %s", b.tableName()), err)
	}
	have, err := h.rules.elements()
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range wanted {
		elements, err := portElements(mapping{p, pod.ID}, addrs)
		if err != nil {
			return err
		}
		if !containsAll(have, elements) {
			errs = append(errs, fmt.Errorf("host port %s does not lead to the pod", describe(p)))
		}
	}
	return errors.Join(errs...)
}

func containsAll(have, want map[string][]nftables.SetElement) bool {
	for name, list := range want {
		for _, w := range list {
			if !slices.ContainsFunc(have[name], func(e nftables.SetElement) bool { return bytes.Equal(e.Key, w.Key) && bytes.Equal(e.Val, w.Val) }) {
				return false
			}
		}
	}
	return true
}
