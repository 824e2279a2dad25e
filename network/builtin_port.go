package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ErrPortTaken matches the error of an Attach that asks for a host port of another pod.
var ErrPortTaken = errors.New("host port is taken")

// Ports is the book of host ports given out: symbolic links as in addresses, named "tcp,any,8080" or
// "udp,10.0.0.1,53" and pointing at "<pod id>:<container port>". The nftables table can be written from it at any
// time, so rules that somebody flushed come back.
type ports struct{ dir string }

// A mapping is a host port with the pod that holds it.
type mapping struct {
	Port
	PodID string
}

func (p ports) all() ([]mapping, error) {
	links, err := readLinks(p.dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read the host ports given out: %w", err)
	}
	var list []mapping
	for name, target := range links {
		if m, ok := parseMapping(name, target); ok {
			list = append(list, m)
		}
	}
	return list, nil
}

func (p ports) of(podID string) ([]mapping, error) {
	all, err := p.all()
	if err != nil {
		return nil, err
	}
	var mine []mapping
	for _, m := range all {
		if m.PodID == podID {
			mine = append(mine, m)
		}
	}
	return mine, nil
}

// reserve writes the pod's ports down, if they overlap with nobody's: any address with one address, too. The host's turn
// keeps others out. What it linked before an error is given back by release.
func (p ports) reserve(podID string, wanted []Port) error {
	all, err := p.all()
	if err != nil {
		return err
	}
	for _, port := range wanted {
		for _, other := range all {
			if other.PodID != podID && overlap(port, other.Port) {
				return fmt.Errorf("%w: %s is held by pod %s as %s", ErrPortTaken, describe(port), other.PodID, describe(other.Port))
			}
		}
	}
	for _, port := range wanted {
		if err := p.link(mapping{port, podID}); err != nil {
			return err
		}
	}
	return nil
}

func (p ports) link(m mapping) error {
	name := filepath.Join(p.dir, portName(m.Port))
	err := os.Symlink(portTarget(m), name)
	if !errors.Is(err, fs.ErrExist) {
		if err != nil {
			return fmt.Errorf("cannot reserve host port %s: %w", describe(m.Port), err)
		}
		return nil
	}
	target, err := os.Readlink(name)
	if err != nil {
		return fmt.Errorf("cannot reserve host port %s: %w", describe(m.Port), err)
	}
	if target == portTarget(m) {
		return nil
	}
	holder, _, _ := strings.Cut(target, ":")
	return fmt.Errorf("%w: %s is held by pod %s", ErrPortTaken, describe(m.Port), holder)
}

func (p ports) release(list []mapping) error {
	var errs []error
	for _, m := range list {
		err := os.Remove(filepath.Join(p.dir, portName(m.Port)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("cannot release host port %s: %w", describe(m.Port), err))
		}
	}
	return errors.Join(errs...)
}

// overlap says whether two host ports can meet the same packet. No address means any of both families, 0.0.0.0 and
// :: any of theirs.
func overlap(a, b Port) bool {
	if a.Protocol != b.Protocol || a.HostPort != b.HostPort {
		return false
	}
	x, y := a.HostIP, b.HostIP
	if !x.IsValid() || !y.IsValid() {
		return true
	}
	return x == y || x.Is4() == y.Is4() && (x.IsUnspecified() || y.IsUnspecified())
}

func describe(p Port) string {
	if !p.HostIP.IsValid() {
		return fmt.Sprintf("%d/%s", p.HostPort, p.Protocol)
	}
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.HostIP, p.HostPort), p.Protocol)
}

func portName(p Port) string {
	ip := "any"
	if p.HostIP.IsValid() {
		ip = p.HostIP.String()
	}
	return fmt.Sprintf("%s,%s,%d", p.Protocol, ip, p.HostPort)
}

func portTarget(m mapping) string { return fmt.Sprintf("%s:%d", m.PodID, m.ContainerPort) }

func parseMapping(name, target string) (mapping, bool) {
	parts := strings.Split(name, ",")
	podID, container, _ := strings.Cut(target, ":")
	if len(parts) != 3 {
		return mapping{}, false
	}
	var ip netip.Addr
	var err error
	if parts[1] != "any" {
		ip, err = netip.ParseAddr(parts[1])
	}
	host, hostErr := strconv.ParseUint(parts[2], 10, 16)
	inner, innerErr := strconv.ParseUint(container, 10, 16)
	port := Port{Protocol: parts[0], HostIP: ip, HostPort: uint16(host), ContainerPort: uint16(inner)}
	return mapping{port, podID}, err == nil && hostErr == nil && innerErr == nil
}

// hostPorts returns the pod's host ports as the books keep them: lower-case protocol, tcp when it is empty, no
// IPv4-in-IPv6 addresses.
func hostPorts(list []Port) ([]Port, error) {
	var wanted []Port
	for _, p := range list {
		if p.HostPort == 0 {
			continue
		}
		p.Protocol, p.HostIP = strings.ToLower(p.Protocol), p.HostIP.Unmap().WithZone("")
		if p.Protocol == "" {
			p.Protocol = "tcp"
		}
		if _, ok := protocols[p.Protocol]; !ok {
			return nil, fmt.Errorf("cannot map host port %s: the protocols are tcp, udp and sctp", describe(p))
		}
		if p.ContainerPort == 0 {
			return nil, fmt.Errorf("cannot map host port %s: it names no container port", describe(p))
		}
		wanted = append(wanted, p)
	}
	return wanted, nil
}
