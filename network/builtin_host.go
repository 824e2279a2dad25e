package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/internal/effect"
	"github.com/evenkeel/evenkeel/internal/namespace"
)

// A host is the engine's end of the network: sockets into the host's namespace, bridge and table. It is not changed
// once it is shared; bringing the host up again makes a new one around the same sockets.
type host struct {
	ns      netns.NsHandle
	nsFile  *os.File // keeps ns open; nil for the daemon's own namespace
	nsPath  string
	links   *netlink.Handle
	rules   *rules
	bridge  bridge
	subnets []netip.Prefix // for new pods
	known   []netip.Prefix // these and earlier ones that pods may still use
}

type bridge struct {
	Name  string
	Index int // 0: not brought up yet
}

const hostTurn = "host"

var (
	bridgeEffect = effect.New("network.builtin.bridge")
	tableEffect  = effect.New("network.builtin.table")
	sysctlEffect = effect.New("network.builtin.sysctls")
)

// open makes the books' directories and the sockets, once.
func (b *Builtin) open() (*host, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current != nil {
		return b.current, nil
	}
	for _, dir := range []string{b.addresses().dir, b.ports().dir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("cannot make the books of the network: %w", err)
		}
	}
	h, err := openHost(b.NetNS)
	if err != nil {
		return nil, err
	}
	h.rules = newRules(b.tableName(), b.bridgeName(), max(int(h.ns), 0))
	h.bridge.Name = b.bridgeName()
	if link, err := h.links.LinkByName(h.bridge.Name); err == nil {
		h.bridge.Index = link.Attrs().Index
	}
	b.current = h
	return h, nil
}

func openHost(path string) (*host, error) {
	h := &host{nsPath: path, ns: netns.None()}
	if path != "" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("cannot open the host's network namespace: %w", err)
		}
		h.nsFile, h.ns = f, netns.NsHandle(f.Fd())
	}
	links, err := netlink.NewHandleAt(h.ns, unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("cannot open a netlink socket: %w", err)
	}
	h.links = links
	return h, nil
}

// ensure returns the host with bridge, table and sysctls as they should be. Where they are, which is looked at before each pod and
// whenever the status is asked for, it costs two netlink calls and some reads: somebody may have deleted the bridge, reloaded
// the firewall with "flush ruleset", or applied a sysctl.conf that turns forwarding off.
func (b *Builtin) ensure(ctx context.Context) (*host, error) {
	subnets, err := b.subnets()
	if err != nil {
		return nil, err
	}
	release, err := b.turns.take(ctx, hostTurn)
	if err != nil {
		return nil, err
	}
	defer release()
	h, err := b.open()
	if err != nil {
		return nil, err
	}
	if slices.Equal(h.subnets, subnets) && h.up() {
		return h, b.keepSysctls(ctx, h)
	}
	return b.bringUp(ctx, h, subnets)
}

// keepSysctls sets again what somebody has changed.
func (b *Builtin) keepSysctls(ctx context.Context, h *host) error {
	wrong, err := h.wrong(slices.Concat(h.guarding(), h.forwarding()))
	wrong = slices.DeleteFunc(wrong, func(s sysctl) bool { return b.refused[s.name] })
	if err != nil || len(wrong) == 0 {
		return err
	}
	b.log().Warn("somebody changed sysctls that pods need; they are set again", "sysctls", wrong)
	return sysctlEffect.Do(ctx, func() error { return b.setSysctls(h, wrong) })
}

// up says whether the bridge that this host was brought up with is there and running, and the table too.
func (h *host) up() bool {
	link, err := h.links.LinkByName(h.bridge.Name)
	if err != nil || link.Attrs().Index != h.bridge.Index || link.Attrs().Flags&net.FlagUp == 0 {
		return false
	}
	present, err := h.rules.present()
	return err == nil && present
}

func (b *Builtin) bringUp(ctx context.Context, old *host, subnets []netip.Prefix) (*host, error) {
	if err := b.checkRange(subnets); err != nil {
		return nil, err
	}
	h := *old
	h.subnets = subnets
	if err := h.checkOverlap(); err != nil {
		return nil, err
	}
	err := bridgeEffect.Do(ctx, func() error {
		if err := h.bringUpBridge(b.mtu(&h)); err != nil {
			return err
		}
		wrong, err := h.wrong(slices.Concat(h.guarding(), h.forwarding()))
		if err != nil {
			return err
		}
		return errors.Join(b.setSysctls(&h, wrong), b.enslaveAll(&h))
	})
	if err != nil {
		return nil, err
	}
	err = tableEffect.Do(ctx, func() error { return b.writeTable(&h) })
	if err != nil {
		return nil, err
	}
	b.warnOfDrop(&h)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.current = &h
	return &h, nil
}

// writeTable writes the table from the books, and drops what clients began while there was none.
func (b *Builtin) writeTable(h *host) error {
	list, err := b.ports().all()
	if err != nil {
		return err
	}
	elements, err := b.allElements(list)
	if err != nil {
		return err
	}
	if err := h.rules.rewrite(h.known, elements); err != nil {
		return err
	}
	return h.forgetUntranslated(list)
}

// bringUpBridge makes the bridge, or completes it. Its MAC address is set, since a bridge without one takes the
// lowest of its ports', and the gateway would change its face whenever a pod comes or goes. Addresses of earlier
// ranges stay on the bridge, which is how those ranges are known.
func (h *host) bringUpBridge(mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = h.bridge.Name, mtu, hardwareAddr(gateway(h.subnets[0]))
	err := h.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("cannot create bridge %s: %w", h.bridge.Name, err)
	}
	link, err := h.links.LinkByName(h.bridge.Name)
	if err != nil {
		return fmt.Errorf("cannot find bridge %s: %w", h.bridge.Name, err)
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("cannot use %s as bridge: it exists and is of type %s", h.bridge.Name, link.Type())
	}
	h.bridge.Index = link.Attrs().Index
	for _, p := range h.subnets {
		if err := addAddress(h.links, link, netip.PrefixFrom(gateway(p), p.Bits())); err != nil {
			return err
		}
	}
	if err := h.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("cannot bring bridge %s up: %w", h.bridge.Name, err)
	}
	return h.readKnown(link)
}

func (h *host) readKnown(link netlink.Link) error {
	addrs, err := addressesOf(h.links, link)
	if err != nil {
		return err
	}
	h.known = slices.Clone(h.subnets)
	for _, a := range addrs {
		p := a.Masked()
		if !p.Addr().IsLinkLocalUnicast() && !slices.Contains(h.known, p) {
			h.known = append(h.known, p)
		}
	}
	return nil
}

// checkRange refuses a range that gives an address of a running pod, from an earlier range, another meaning.
func (b *Builtin) checkRange(subnets []netip.Prefix) error {
	owners, err := b.addresses().owners()
	if err != nil {
		return err
	}
	for addr, podID := range owners {
		if reserved(addr, subnets) {
			return fmt.Errorf("cannot use pod range %v: pod %s has %s from an earlier one, which is network, gateway or broadcast address now", subnets, podID, addr)
		}
	}
	return nil
}

// enslaveAll puts the links of the books' pods back into the bridge, which somebody deleted under them.
func (b *Builtin) enslaveAll(h *host) error {
	owners, err := b.addresses().owners()
	if err != nil {
		return err
	}
	all, err := h.links.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("cannot list links: %w", err)
	}
	outside := map[string]bool{}
	for _, link := range all {
		outside[link.Attrs().Name] = link.Attrs().MasterIndex != h.bridge.Index
	}
	for _, podID := range owners {
		if name := linkName(podID); outside[name] {
			outside[name] = false // a pod of two families is there twice
			if err := h.enslave(podID); err != nil && !isLinkNotFound(err) {
				return err
			}
		}
	}
	return nil
}

// mtu is for pods that come now: at boot the engine is often up before the uplink.
func (b *Builtin) mtu(h *host) int {
	if b.MTU > 0 {
		return b.MTU
	}
	return h.uplinkMTU()
}

// uplinkMTU asks the routing table where a packet to the outside would go; the addresses are those reserved for
// documentation (RFC 5737, RFC 3849), which only a default route covers.
func (h *host) uplinkMTU() int {
	for _, outside := range []string{"192.0.2.1", "2001:db8::1"} {
		if link := h.linkTowards(outside); link != nil && link.Attrs().MTU > 0 {
			return link.Attrs().MTU
		}
	}
	return 1500
}

func (h *host) linkTowards(ip string) netlink.Link {
	routes, err := h.links.RouteGet(net.ParseIP(ip))
	if err != nil || len(routes) == 0 {
		return nil
	}
	link, err := h.links.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return nil
	}
	return link
}

// allElements looks up the pods' addresses. A port whose pod has no address yet is one that was never opened.
func (b *Builtin) allElements(list []mapping) (map[string][]nftables.SetElement, error) {
	if len(list) == 0 {
		return nil, nil
	}
	owners, err := b.addresses().owners()
	if err != nil {
		return nil, err
	}
	byPod := map[string][]netip.Addr{}
	for addr, id := range owners {
		byPod[id] = append(byPod[id], addr)
	}
	all := map[string][]nftables.SetElement{}
	taken := map[string]bool{}
	for _, m := range list {
		elements, err := portElements(m, byPod[m.PodID])
		if err != nil {
			continue
		}
		merge(all, elements, taken)
	}
	return all, nil
}

func elementsOf(list []mapping, addrs []netip.Addr) (map[string][]nftables.SetElement, error) {
	all := map[string][]nftables.SetElement{}
	for _, m := range list {
		elements, err := portElements(m, addrs)
		if err != nil {
			return nil, err
		}
		merge(all, elements, map[string]bool{})
	}
	return all, nil
}

// merge leaves out a second element of one key: a pod may ask for a port on any address and on 0.0.0.0, and the kernel would
// refuse the whole table if they led to different places.
func merge(all, more map[string][]nftables.SetElement, taken map[string]bool) {
	for name, list := range more {
		for _, e := range list {
			if key := name + string(e.Key); !taken[key] {
				taken[key] = true
				all[name] = append(all[name], e)
			}
		}
	}
}

// sysctl is one of the node's.
type sysctl struct {
	name string // path below /proc/sys
	want string
	only string // value that is to be changed; empty: any
	have string // found by wrong; 0 where it is missing, as those of IPv6 are on a node without
}

func (s sysctl) String() string {
	return fmt.Sprintf("sysctl %s is %s, not %s", strings.ReplaceAll(s.name, "/", "."), s.have, s.want)
}

// forwarding are those without which packets of pods end on the node.
func (h *host) forwarding() []sysctl {
	list := []sysctl{{name: "net/ipv4/ip_forward", want: "1"}, {name: "net/ipv4/conf/" + h.bridge.Name + "/route_localnet", want: "1"}}
	if h.hasIPv6() {
		list = append(list, sysctl{name: "net/ipv6/conf/all/forwarding", want: "1"})
	}
	return list
}

// guarding are those that should hold before packets are forwarded.
func (h *host) guarding() []sysctl {
	// Pods can send router advertisements (CAP_NET_RAW), and the node would send them its own traffic (CVE-2020-10749), also
	// where pods have no IPv6.
	list := []sysctl{{name: "net/ipv6/conf/" + h.bridge.Name + "/accept_ra", want: "0"}}
	if h.hasIPv6() {
		list = append(list, h.keepRouterAdvertisements()...)
		// The bridge asks for neighbours from its link-local address, which must not wait for duplicate detection.
		list = append(list, sysctl{name: "net/ipv6/conf/" + h.bridge.Name + "/accept_dad", want: "0"})
	}
	return list
}

func (h *host) hasIPv6() bool {
	return slices.ContainsFunc(h.known, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// wrong are those that have another value than is wanted.
func (h *host) wrong(list []sysctl) (wrong []sysctl, err error) {
	err = inNet(h.nsPath, func() error {
		for _, s := range list {
			s.have = cmp.Or(readSysctl(s.name), "0")
			if s.have != s.want && (s.only == "" || s.have == s.only) {
				wrong = append(wrong, s)
			}
		}
		return nil
	})
	return wrong, err
}

// setSysctls lets packets through. A refusal (a read-only /proc/sys in a container) is logged, once, and not fatal: pods
// still reach each other and the host. The caller has the host's turn.
func (b *Builtin) setSysctls(h *host, list []sysctl) error {
	return inNet(h.nsPath, func() error {
		for _, s := range list {
			err := os.WriteFile("/proc/sys/"+s.name, []byte(s.want), 0o644)
			if err != nil && !b.refused[s.name] {
				b.log().Warn("cannot set a sysctl; pods may not reach the outside", "sysctl", s.name, "wanted", s.want, "error", err)
			}
			if b.refused == nil {
				b.refused = map[string]bool{}
			}
			b.refused[s.name] = err != nil
		}
		return nil
	})
}

// keepRouterAdvertisements is for a host that gets its own IPv6 route from router advertisements: with forwarding
// on, the kernel ignores them unless accept_ra is 2 (Documentation/networking/ip-sysctl.rst), and the host would
// lose its default route some time later.
func (h *host) keepRouterAdvertisements() []sysctl {
	uplink := h.linkTowards("2001:db8::1")
	if uplink == nil {
		return nil
	}
	return []sysctl{{name: "net/ipv6/conf/" + uplink.Attrs().Name + "/accept_ra", want: "2", only: "1"}}
}

func inNet(path string, f func() error) error {
	if path == "" {
		return f()
	}
	return namespace.InNet(path, f)
}

func readSysctl(name string) string {
	data, _ := os.ReadFile("/proc/sys/" + name)
	return strings.TrimSpace(string(data))
}

// warnOfDrop names a firewall that drops forwarded packets, which no rule of ours can overrule: every table on a
// hook has its own say.
func (b *Builtin) warnOfDrop(h *host) {
	conn, err := h.rules.dial()
	if err != nil {
		return
	}
	chains, err := conn.ListChains()
	if err != nil {
		return
	}
	for _, c := range chains {
		if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop {
			continue
		}
		b.log().Warn("the firewall drops forwarded packets by default; pods reach the outside only if it allows the bridge",
			"table", c.Table.Name, "chain", c.Name, "bridge", h.bridge.Name)
	}
}

// subnets are those of the configuration, or else of the kubelet, or else those remembered from an earlier start, or else the default.
func (b *Builtin) subnets() ([]netip.Prefix, error) {
	if len(b.Subnets) > 0 {
		return checkSubnets(b.Subnets)
	}
	b.mu.Lock()
	learned := b.learned
	b.mu.Unlock()
	if len(learned) > 0 {
		return learned, nil
	}
	cidr := readPodCIDR(b.Dir)
	switch {
	case cidr == "" && len(b.Default) > 0:
		return checkSubnets(b.Default)
	case cidr == "":
		return nil, fmt.Errorf("%w: no pod address range is known: configure one or let the kubelet send it", ErrNotReady)
	}
	return parseSubnets(cidr)
}

func (h *host) hasLink(podID string) bool {
	_, err := h.links.LinkByName(linkName(podID))
	return err == nil
}

// Teardown detaches every pod and removes bridge and table. It is for private instances, which leave nothing behind;
// the sysctls stay, since others may have come to rely on them. A nil error means that bridge and table are gone.
func (b *Builtin) Teardown(ctx context.Context) error {
	err := b.Sweep(ctx, func(string) bool { return false })
	if err != nil {
		return err
	}
	release, err := b.turns.take(ctx, hostTurn)
	if err != nil {
		return err
	}
	defer release()
	h, err := b.open()
	if err != nil {
		return err
	}
	return errors.Join(h.removeLink(h.bridge.Name), h.rules.drop(), b.Close())
}

// Close releases the sockets; the next call opens new ones.
func (b *Builtin) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current == nil {
		return nil
	}
	b.current.links.Close()
	b.current.rules.close()
	if b.current.nsFile != nil {
		b.current.nsFile.Close()
	}
	b.current = nil
	return nil
}
