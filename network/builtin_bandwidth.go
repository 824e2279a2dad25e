package network

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// limit holds the pod to its bandwidth with a token bucket at each end of its link: what the host sends into it is what
// the pod receives. So the limits go with the link, and there is nothing to undo. A container with CAP_NET_ADMIN can lift
// the limit of what it sends, as it can change everything else of its own network.
func (h *host) limit(pod Pod, b Bandwidth) error {
	if b.Ingress > 0 {
		if err := setRate(h.links, linkName(pod.ID), b.Ingress); err != nil {
			return fmt.Errorf("cannot limit what goes into the pod: %w", err)
		}
	}
	if b.Egress == 0 {
		return nil
	}
	_, inside, leave, err := pod.inside()
	if err != nil {
		return err
	}
	defer leave()
	if err := setRate(inside, podInterface, b.Egress); err != nil {
		return fmt.Errorf("cannot limit what comes out of the pod: %w", err)
	}
	return nil
}

// queued is how long a packet may wait besides the burst, as the bandwidth plugin has it.
const queued = 40 // parts of a second

// setRate puts a token bucket filter (tc-tbf(8)) on what leaves an interface.
func setRate(links *netlink.Handle, name string, bits uint64) error {
	link, err := links.LinkByName(name)
	if err != nil {
		return fmt.Errorf("cannot find %s: %w", name, err)
	}
	rate, size := bits/8, uint32(burst(bits)/8)
	bucket := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Buffer: netlink.Xmittime(rate, size), Limit: uint32(min(rate/queued, 1<<30)) + size,
	}
	if err := links.QdiscReplace(bucket); err != nil {
		return fmt.Errorf("cannot put a token bucket on %s (the kernel needs sch_tbf): %w", name, err)
	}
	return nil
}
