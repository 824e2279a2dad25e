package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"
)

// ErrExhausted matches the error of an Attach that found no free address.
var ErrExhausted = errors.New("no free address")

// Addresses is the book of addresses given out. Its directory holds one symbolic link per address, named by the
// address and pointing at the id of the pod that holds it. symlink(2) creates name and content in one step and
// refuses an existing name, so a reservation is exclusive, is never seen half-written, and survives a crash.
type addresses struct {
	dir  string
	last *atomic.Pointer[netip.Addr] // given out last; only a hint, so a race costs nothing
}

// owners returns the holder of every address given out.
func (a addresses) owners() (map[netip.Addr]string, error) {
	links, err := readLinks(a.dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read the addresses given out: %w", err)
	}
	owners := make(map[netip.Addr]string, len(links))
	for name, podID := range links {
		if addr, err := netip.ParseAddr(name); err == nil {
			owners[addr] = podID
		}
	}
	return owners, nil
}

// of returns the pod's addresses, those of the first subnet's family first.
func (a addresses) of(podID string, subnets []netip.Prefix) ([]netip.Addr, error) {
	owners, err := a.owners()
	if err != nil {
		return nil, err
	}
	var held []netip.Addr
	for addr, owner := range owners {
		if owner == podID {
			held = append(held, addr)
		}
	}
	slices.SortFunc(held, func(x, y netip.Addr) int {
		if x.Is4() == y.Is4() {
			return x.Compare(y)
		}
		if len(subnets) > 0 && x.Is4() == subnets[0].Addr().Is4() {
			return -1
		}
		return 1
	})
	return held, nil
}

// reserve gives the pod one address of each subnet, all with the same host number: so an IPv6 address always goes
// with the same IPv4 address, and with the one MAC address derived from it, and no neighbour's cache goes stale. The
// search starts behind the address that was given out last, so that a released address rests for as long as possible.
// known are the ranges on the bridge: what an earlier one reserved may lie in the middle of a later one.
func (a addresses) reserve(podID string, subnets, known []netip.Prefix) ([]netip.Addr, error) {
	owners, err := a.owners()
	if err != nil {
		return nil, err
	}
	first, size := a.next(subnets[0]), hosts(subnets)
	for i := range size {
		number := firstHost + (first-firstHost+i)%size
		candidates := numbered(subnets, number)
		if slices.ContainsFunc(candidates, func(c netip.Addr) bool { return owners[c] != "" || reserved(c, known) }) {
			continue
		}
		taken, err := a.take(podID, candidates)
		if err != nil {
			return nil, err
		}
		if taken {
			a.last.Store(&candidates[0])
			return candidates, nil
		}
	}
	return nil, fmt.Errorf("%w in %v: %d are in use", ErrExhausted, subnets, len(owners))
}

// take links all candidates to the pod or none of them; false means that another pod came first.
func (a addresses) take(podID string, candidates []netip.Addr) (bool, error) {
	for i, addr := range candidates {
		err := os.Symlink(podID, filepath.Join(a.dir, addr.String()))
		if err == nil {
			continue
		}
		for _, mine := range candidates[:i] {
			os.Remove(filepath.Join(a.dir, mine.String()))
		}
		if errors.Is(err, fs.ErrExist) {
			return false, nil
		}
		return false, fmt.Errorf("cannot reserve %s: %w", addr, err)
	}
	return true, nil
}

// release gives back the pod's addresses. A nil error means it holds none.
func (a addresses) release(podID string) error {
	held, err := a.of(podID, nil)
	if err != nil {
		return err
	}
	var errs []error
	for _, addr := range held {
		err := os.Remove(filepath.Join(a.dir, addr.String()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("cannot release %s: %w", addr, err))
		}
	}
	return errors.Join(errs...)
}

// Number 0 is the network itself and 1 the gateway; IPv4's last one is the broadcast address.
const firstHost = 2

// hosts counts the pods that fit into the smallest of the subnets.
func hosts(subnets []netip.Prefix) uint64 {
	size := uint64(1) << 32
	for _, p := range subnets {
		bits := p.Addr().BitLen() - p.Bits()
		if bits < 32 {
			size = min(size, 1<<bits)
		}
	}
	if size <= firstHost+1 {
		return 0
	}
	return size - firstHost - 1
}

// next returns the host number behind the one given out last. After a restart that is the youngest in the book.
func (a addresses) next(p netip.Prefix) uint64 {
	last := a.last.Load()
	if last == nil {
		youngest := a.youngest(p)
		last = &youngest
	}
	if !p.Contains(*last) {
		return firstHost
	}
	return hostNumber(p, *last) + 1
}

func (a addresses) youngest(p netip.Prefix) (found netip.Addr) {
	entries, _ := os.ReadDir(a.dir)
	var newest time.Time
	for _, e := range entries {
		addr, err := netip.ParseAddr(e.Name())
		if err != nil || !p.Contains(addr) {
			continue
		}
		if info, err := e.Info(); err == nil && info.ModTime().After(newest) {
			found, newest = addr, info.ModTime()
		}
	}
	return found
}

func numbered(subnets []netip.Prefix, number uint64) []netip.Addr {
	list := make([]netip.Addr, len(subnets))
	for i, p := range subnets {
		list[i] = hostAddress(p, number)
	}
	return list
}

// reserved says whether an address is one of those that no pod of its range gets.
func reserved(addr netip.Addr, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool {
		broadcast := p.Addr().Is4() && addr == hostAddress(p, 1<<(32-p.Bits())-1)
		return addr == p.Masked().Addr() || addr == gateway(p) || broadcast
	})
}

func gateway(p netip.Prefix) netip.Addr { return hostAddress(p, 1) }

// hostAddress adds a host number below 2^32 to the network's address, whose host bits are zero: nothing carries over.
func hostAddress(p netip.Prefix, number uint64) netip.Addr {
	raw := p.Masked().Addr().AsSlice()
	tail := raw[len(raw)-4:]
	binary.BigEndian.PutUint32(tail, binary.BigEndian.Uint32(tail)+uint32(number))
	addr, _ := netip.AddrFromSlice(raw)
	return addr
}

func hostNumber(p netip.Prefix, addr netip.Addr) uint64 {
	network, host := p.Masked().Addr().AsSlice(), addr.AsSlice()
	low := func(b []byte) uint32 { return binary.BigEndian.Uint32(b[len(b)-4:]) }
	return uint64(low(host) - low(network))
}

// readLinks returns the symbolic links of a directory as name to target. One that goes away meanwhile is left out.
func readLinks(dir string) (map[string]string, error) {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	links := make(map[string]string, len(names))
	for _, name := range names {
		if target, err := os.Readlink(filepath.Join(dir, name)); err == nil {
			links[name] = target
		}
	}
	return links, nil
}
