package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/evenkeel/evenkeel/internal/effect"
)

// Builtin is the network for nodes without a CNI plugin: one bridge, a veth pair per pod, addresses from the node's
// pod range, masquerade for what leaves it, and host ports. It works through netlink and nftables in process and runs
// no program.
//
// Nothing about a pod is kept in memory. Two books under Dir hold the intents, addresses and ports; the name of the
// pod's link, its MAC address and its map elements follow from its id and its address. So Detach and Sweep need
// nothing but an id, and work the same after a crash, an upgrade or a reboot.
//
// Bridge, table and the forwarding sysctls are the engine's, not a pod's: they stay when the daemon stops, since pods
// go on without it. Teardown removes bridge and table.
type Builtin struct {
	Dir     string         // the books, under the root directory
	Bridge  string         // "ek0" when empty
	Table   string         // name of the nftables table, of family inet; "evenkeel" when empty
	Subnets []netip.Prefix // at most one of each family, the primary one first; none: SetPodCIDR tells
	Default []netip.Prefix // used without Subnets until SetPodCIDR tells
	MTU     int            // 0: that of the interface with the default route
	NetNS   string         // path of the network namespace that plays the host; "" is the daemon's own
	Log     *slog.Logger

	turns turns // one caller per pod id; hostTurn is for the host's end
	last  atomic.Pointer[netip.Addr]

	refused map[string]bool // sysctls that cannot be set; whoever has the host's turn uses it

	mu      sync.Mutex // guards current and learned
	current *host
	learned []netip.Prefix // from SetPodCIDR
}

var (
	addressEffect       = effect.New("network.builtin.address")
	portsEffect         = effect.New("network.builtin.ports")
	linkEffect          = effect.New("network.builtin.link")
	bandwidthEffect     = effect.New("network.builtin.bandwidth")
	detachPortsEffect   = effect.New("network.builtin.detach.ports")
	detachLinkEffect    = effect.New("network.builtin.detach.link")
	detachAddressEffect = effect.New("network.builtin.detach.address")
)

var _ Provider = (*Builtin)(nil)

// Attach reserves addresses and host ports, then makes the pod's interface. On an error the pod may hold some of
// these: Detach releases them.
func (b *Builtin) Attach(ctx context.Context, pod Pod) (Result, error) {
	result, err := b.attach(ctx, pod)
	if err != nil {
		return Result{}, fmt.Errorf("cannot attach pod %s to bridge %s: %w", pod.ID, b.bridgeName(), err)
	}
	return result, nil
}

func (b *Builtin) attach(ctx context.Context, pod Pod) (Result, error) {
	release, err := b.turns.take(ctx, pod.ID)
	if err != nil {
		return Result{}, err
	}
	defer release()
	wanted, err := hostPorts(pod.Ports)
	if err != nil {
		return Result{}, err
	}
	limits, err := ReadBandwidth(pod.Annotations)
	if err != nil {
		return Result{}, err
	}
	if _, err := ReadMAC(pod.Annotations); err != nil {
		return Result{}, err
	}
	h, err := b.ensure(ctx)
	if err != nil {
		return Result{}, err
	}
	var addrs []netip.Addr
	err = addressEffect.Do(ctx, func() error { addrs, err = b.address(h, pod.ID); return err })
	if err == nil && len(wanted) > 0 {
		err = portsEffect.Do(ctx, func() error { return b.mapPorts(ctx, h, pod.ID, wanted, addrs) })
	}
	if err == nil {
		err = linkEffect.Do(ctx, func() error { return h.connect(pod, addrs, h.known, b.mtu(h)) })
	}
	if err == nil && limits != (Bandwidth{}) {
		err = bandwidthEffect.Do(ctx, func() error { return h.limit(pod, limits) })
	}
	return Result{IPs: addrs, Interface: podInterface}, err
}

// address returns the addresses that the pod holds, or reserves some. A pod whose link exists keeps what it has; a
// reservation that was broken off in the middle has no link, and is made anew.
func (b *Builtin) address(h *host, podID string) ([]netip.Addr, error) {
	book := b.addresses()
	held, err := book.of(podID, h.subnets)
	if err != nil {
		return nil, err
	}
	if len(held) == len(h.subnets) || len(held) > 0 && h.hasLink(podID) {
		return held, nil
	}
	if err := book.release(podID); err != nil {
		return nil, err
	}
	return book.reserve(podID, h.subnets, h.known)
}

// mapPorts writes the ports down and then opens them.
func (b *Builtin) mapPorts(ctx context.Context, h *host, podID string, wanted []Port, addrs []netip.Addr) error {
	release, err := b.turns.take(ctx, hostTurn)
	if err != nil {
		return err
	}
	defer release()
	list := make([]mapping, len(wanted))
	for i, p := range wanted {
		list[i] = mapping{p, podID}
	}
	elements, err := elementsOf(list, addrs)
	if err != nil {
		return err
	}
	if err := b.ports().reserve(podID, wanted); err != nil {
		return err
	}
	if err := h.rules.add(elements); err != nil {
		return err
	}
	return h.forgetUntranslated(list)
}

// Detach closes the pod's host ports, removes its interface and gives back its addresses, in this order: an address
// is free only when nothing leads to it any more. A nil error means that the pod holds none of these.
func (b *Builtin) Detach(ctx context.Context, pod Pod) error {
	release, err := b.turns.take(ctx, pod.ID)
	if err == nil {
		defer release()
		err = b.detach(ctx, pod.ID)
	}
	if err != nil {
		return fmt.Errorf("cannot detach pod %s from bridge %s: %w", pod.ID, b.bridgeName(), err)
	}
	return nil
}

func (b *Builtin) detach(ctx context.Context, podID string) error {
	h, err := b.open()
	if err != nil {
		return err
	}
	err = errors.Join(
		detachPortsEffect.Do(ctx, func() error { return b.unmapPorts(ctx, h, podID) }),
		detachLinkEffect.Do(ctx, func() error { return h.disconnect(podID) }))
	if err != nil {
		return err
	}
	return detachAddressEffect.Do(ctx, func() error {
		b.forgetNeighbour(h, podID)
		return b.addresses().release(podID)
	})
}

// forgetNeighbour makes the host ask who has the pod's addresses when it next sends there: the pod may have had a hardware
// address of its own choice, or its successor may. Where that fails, and in other pods, the kernel notices some seconds later.
func (b *Builtin) forgetNeighbour(h *host, podID string) {
	addrs, err := b.addresses().of(podID, nil)
	if err != nil || h.bridge.Index == 0 {
		return
	}
	for _, ip := range addrs {
		h.links.NeighDel(&netlink.Neigh{LinkIndex: h.bridge.Index, IP: ip.AsSlice()})
	}
}

func (b *Builtin) unmapPorts(ctx context.Context, h *host, podID string) error {
	list, err := b.ports().of(podID)
	if err != nil || len(list) == 0 {
		return err
	}
	release, err := b.turns.take(ctx, hostTurn)
	if err != nil {
		return err
	}
	defer release()
	if err := h.rules.removePod(podID); err != nil {
		return err
	}
	addrs, err := b.addresses().of(podID, nil)
	if err != nil {
		return err
	}
	if err := h.forgetTranslated(list, addrs); err != nil {
		return err
	}
	return b.ports().release(list)
}

// Sweep detaches every pod of the books that is not live, and deletes links in the bridge whose pod is not live.
func (b *Builtin) Sweep(ctx context.Context, live func(podID string) bool) error {
	// Links before books: a link is made after its pod's books were written, so a link that is listed here has its pod in
	// the books that are read next. The other way round, a pod that is being attached right now would lose its link.
	links, err := b.podLinks()
	if err != nil {
		return fmt.Errorf("cannot sweep bridge %s: %w", b.bridgeName(), err)
	}
	holders, err := b.holders()
	if err != nil {
		return fmt.Errorf("cannot sweep bridge %s: %w", b.bridgeName(), err)
	}
	kept := map[string]bool{} // by link
	var errs []error
	for id := range holders {
		if live(id) {
			kept[linkName(id)] = true
		} else {
			errs = append(errs, b.Detach(ctx, Pod{ID: id}))
		}
	}
	errs = append(errs, b.sweepLinks(ctx, links, live, kept))
	return errors.Join(errs...)
}

func (b *Builtin) podLinks() (map[string]string, error) {
	h, err := b.open()
	if err != nil {
		return nil, err
	}
	return h.podLinks()
}

func (b *Builtin) holders() (map[string]bool, error) {
	owners, err := b.addresses().owners()
	if err != nil {
		return nil, err
	}
	mapped, err := b.ports().all()
	if err != nil {
		return nil, err
	}
	holders := map[string]bool{}
	for _, id := range owners {
		holders[id] = true
	}
	for _, m := range mapped {
		holders[m.PodID] = true
	}
	return holders, nil
}

// sweepLinks is for links that no book knows, because the books were lost. The label says whose they are.
func (b *Builtin) sweepLinks(ctx context.Context, links map[string]string, live func(podID string) bool, kept map[string]bool) error {
	h, err := b.open()
	if err != nil {
		return err
	}
	var errs []error
	for name, podID := range links {
		if kept[name] || podID != "" && live(podID) {
			continue
		}
		errs = append(errs, detachLinkEffect.Do(ctx, func() error { return h.removeLink(name) }))
	}
	return errors.Join(errs...)
}

// Ready brings up bridge and table where they are missing and forwarding where it is off, and returns what prevents it.
func (b *Builtin) Ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), readyLimit)
	defer cancel()
	_, err := b.ensure(ctx)
	if err != nil && !errors.Is(err, ErrNotReady) {
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return err
}

// Status is polled; an answer that takes longer is not worth more.
const readyLimit = 2 * time.Second

// SetPodCIDR adopts the node's pod range, unless Subnets was set. Pods in an earlier range keep their addresses,
// routes and masquerade; new ones get theirs from the new range. The range is remembered for the next start.
func (b *Builtin) SetPodCIDR(cidr string) error {
	if len(b.Subnets) > 0 || strings.TrimSpace(cidr) == "" {
		return nil
	}
	subnets, err := parseSubnets(cidr)
	if err != nil {
		return fmt.Errorf("cannot use pod range %q: %w", cidr, err)
	}
	if err := writePodCIDR(b.Dir, cidr); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.learned = subnets
	return nil
}

// Info tells what the network looks like: provider, bridge, table, subnets, mtu and the number of addresses in use.
func (b *Builtin) Info() map[string]any {
	info := map[string]any{"provider": "builtin", "bridge": b.bridgeName(), "table": b.tableName()}
	var subnets []string
	wanted, _ := b.subnets()
	for _, p := range wanted {
		subnets = append(subnets, p.String())
	}
	info["subnets"] = subnets
	if owners, err := b.addresses().owners(); err == nil {
		info["addressesInUse"] = len(owners)
	}
	b.mu.Lock()
	h := b.current
	b.mu.Unlock()
	if h != nil {
		info["mtu"] = b.mtu(h)
	}
	return info
}

func (b *Builtin) bridgeName() string {
	if b.Bridge == "" {
		return "ek0"
	}
	return b.Bridge
}

func (b *Builtin) tableName() string {
	if b.Table == "" {
		return "evenkeel"
	}
	return b.Table
}

func (b *Builtin) addresses() addresses { return addresses{filepath.Join(b.Dir, "ip"), &b.last} }
func (b *Builtin) ports() ports         { return ports{filepath.Join(b.Dir, "port")} }

func (b *Builtin) log() *slog.Logger {
	if b.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return b.Log
}
