package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestBuiltinAttachDetach(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.1.0/24")
	a, c := w.pod("a"), w.pod("c")
	first := attach(t, b, a)
	if got, want := first.IPs[0], netip.MustParseAddr("10.211.1.2"); got != want || first.Interface != "eth0" {
		t.Errorf("got %v on %s, want %v on eth0", got, first.Interface, want)
	}
	if again := attach(t, b, a); !slices.Equal(again.IPs, first.IPs) {
		t.Errorf("attached twice: %v, then %v", first.IPs, again.IPs)
	}
	second := attach(t, b, c)
	w.serve(a.NetNS, "a", "tcp", 80)
	w.serve(w.host, "host", "tcp", 81)
	w.expect(c.NetNS, "tcp", first.IPs[0].String()+":80", "a", second.IPs[0].String())
	w.expect(w.host, "tcp", first.IPs[0].String()+":80", "a", "10.211.1.1")
	w.expect(c.NetNS, "tcp", "10.211.1.1:81", "host", second.IPs[0].String())

	for range 2 {
		detach(t, b, a)
	}
	w.in(w.host, func() error {
		if _, err := netlink.LinkByName(linkName(a.ID)); !isLinkNotFound(err) {
			t.Errorf("after Detach: %v", err)
		}
		return nil
	})
	back := attach(t, b, a)
	if back.IPs[0] != netip.MustParseAddr("10.211.1.4") {
		t.Errorf("got %v right after %v was released, want the next one", back.IPs, first.IPs)
	}
	w.serve(a.NetNS, "a2", "tcp", 82)
	w.expect(c.NetNS, "tcp", back.IPs[0].String()+":82", "a2", "")
}

func TestBuiltinDetachWithoutNamespace(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.2.0/24")
	pod := w.pod("a", Port{HostPort: 8080, ContainerPort: 80})
	attach(t, b, pod)
	w.drop(pod.NetNS)
	detach(t, b, Pod{ID: pod.ID})
	detach(t, b, Pod{ID: randomID()})
	w.expectPodGone(b, pod.ID)
}

func (w *world) expectPodGone(b *Builtin, podID string) {
	w.t.Helper()
	h, err := b.open()
	if err != nil {
		w.t.Fatal(err)
	}
	if h.hasLink(podID) {
		w.t.Errorf("pod %s still has a link", podID)
	}
	if addrs, _ := b.addresses().of(podID, nil); len(addrs) > 0 {
		w.t.Errorf("pod %s still has %v", podID, addrs)
	}
	if list, _ := b.ports().of(podID); len(list) > 0 {
		w.t.Errorf("pod %s still has %v", podID, list)
	}
	if rules := w.run(w.host, "nft", "list", "ruleset"); strings.Contains(rules, podID) {
		w.t.Errorf("pod %s still has rules:\n%s", podID, rules)
	}
}

func TestBuiltinHostPorts(t *testing.T) {
	w := newWorld(t)
	outside := w.outside()
	b := w.builtin("10.211.3.0/24", "fd00:211:3::/64")
	pod := w.pod("web",
		Port{Protocol: "tcp", HostPort: 8080, ContainerPort: 80},
		Port{Protocol: "udp", HostPort: 5353, ContainerPort: 53},
		Port{Protocol: "tcp", HostPort: 9090, ContainerPort: 80, HostIP: netip.MustParseAddr("203.0.113.1")},
		Port{Protocol: "tcp", HostPort: 9091, ContainerPort: 80, HostIP: netip.MustParseAddr("127.0.0.1")},
		Port{Protocol: "sctp", HostPort: 7777, ContainerPort: 7},
	)
	other := w.pod("other")
	web := attach(t, b, pod)
	attach(t, b, other)
	w.serve(pod.NetNS, "web", "tcp", 80)
	w.serve(pod.NetNS, "dns", "udp", 53)
	gw := "10.211.3.1"
	for _, c := range []struct{ from, network, address, name, peer string }{
		{outside, "tcp", "203.0.113.1:8080", "web", "203.0.113.2"}, // the client's address is kept
		{outside, "udp", "203.0.113.1:5353", "dns", "203.0.113.2"},
		{outside, "tcp", "203.0.113.1:9090", "web", "203.0.113.2"},
		{outside, "tcp", "[2001:db8:1::1]:8080", "web", "2001:db8:1::2"},
		{w.host, "tcp", "203.0.113.1:8080", "web", ""},
		{w.host, "tcp", "127.0.0.1:8080", "web", gw},
		{w.host, "udp", "127.0.0.1:5353", "dns", gw},
		{w.host, "tcp", "127.0.0.1:9091", "web", gw},
		{w.host, "tcp", "[2001:db8:1::1]:8080", "web", ""},
		{other.NetNS, "tcp", "203.0.113.1:8080", "web", gw},
		{other.NetNS, "tcp", gw + ":8080", "web", gw},
		{other.NetNS, "udp", gw + ":5353", "dns", gw},
		{pod.NetNS, "tcp", "203.0.113.1:8080", "web", gw}, // hairpin
		{pod.NetNS, "udp", gw + ":5353", "dns", gw},
		{pod.NetNS, "tcp", "[2001:db8:1::1]:8080", "web", ""},
	} {
		t.Run(fmt.Sprintf("%s %s %s", filepath.Base(c.from), c.network, c.address), func(t *testing.T) {
			(&world{t: t, dir: w.dir, host: w.host}).expect(c.from, c.network, c.address, c.name, c.peer)
		})
	}
	for _, c := range []struct{ from, network, address string }{
		{w.host, "tcp", "127.0.0.1:9090"},        // mapped on another address only
		{outside, "tcp", "203.0.113.1:9091"},     // mapped on loopback only
		{w.host, "tcp", "[::1]:8080"},            // refused, not hanging
		{w.host, "tcp", "203.0.113.1:80"},        // not mapped
		{outside, "tcp", web.IPs[0].String()},    // no port
		{outside, "tcp", "203.0.113.1:5353"},     // udp only
		{outside, "udp", "203.0.113.1:8080"},     // tcp only
		{other.NetNS, "tcp", "203.0.113.1:9091"}, // loopback of the host is not a pod's
	} {
		start := time.Now()
		if got, err := call(c.from, c.network, c.address); err == nil {
			t.Errorf("%s to %s from %s answers %q", c.network, c.address, c.from, got)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("%s to %s from %s took %s to fail", c.network, c.address, c.from, took)
		}
	}
	if rules := w.run(w.host, "nft", "list", "ruleset"); !strings.Contains(rules, "sctp . 7777") {
		t.Errorf("no sctp port in\n%s", rules)
	}
	detach(t, b, pod)
	w.expectPodGone(b, pod.ID)
	if got, err := call(outside, "tcp", "203.0.113.1:8080"); err == nil {
		t.Errorf("a closed host port answers %q", got)
	}
}

// A pod must not reach what listens on the host's loopback only, although the bridge has route_localnet.
func TestBuiltinLoopbackIsGuarded(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.4.0/24")
	pod := w.pod("evil")
	attach(t, b, pod)
	w.serve(w.host, "secret", "tcp", 81)
	w.run(pod.NetNS, "ip", "addr", "del", "127.0.0.1/8", "dev", "lo")
	w.run(pod.NetNS, "ip", "route", "add", "127.0.0.1", "via", "10.211.4.1")
	w.run(pod.NetNS, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet")
	if got, err := call(pod.NetNS, "tcp", "127.0.0.1:81"); err == nil {
		t.Errorf("the host's loopback answers a pod: %q", got)
	}
}

func TestBuiltinMasqueradeAndMTU(t *testing.T) {
	w := newWorld(t)
	outside := w.outside()
	b := w.builtin("10.211.5.0/24", "fd00:211:5::/64")
	pod := w.pod("a")
	got := attach(t, b, pod)
	if len(got.IPs) != 2 || got.IPs[1] != netip.MustParseAddr("fd00:211:5::2") {
		t.Errorf("dual stack: %v", got.IPs)
	}
	w.serve(outside, "out", "tcp", 80)
	w.expect(pod.NetNS, "tcp", "203.0.113.2:80", "out", "203.0.113.1")
	w.expect(pod.NetNS, "tcp", "[2001:db8:1::2]:80", "out", "2001:db8:1::1")
	if out := w.run(pod.NetNS, "ip", "link", "show", "eth0"); !strings.Contains(out, "mtu 1400") {
		t.Errorf("the uplink has 1400: %s", out)
	}
	if out := w.run(pod.NetNS, "ip", "-6", "addr", "show", "eth0", "scope", "global"); strings.Contains(out, "tentative") {
		t.Errorf("the IPv6 address cannot be used yet: %s", out)
	}
}

// The engine is often up before the uplink is.
func TestBuiltinMTUFollowsTheUplink(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.24.0/24")
	if err := b.Ready(); err != nil {
		t.Fatal(err)
	}
	w.outside()
	pod := w.pod("a")
	attach(t, b, pod)
	if out := w.run(pod.NetNS, "ip", "link", "show", "eth0"); !strings.Contains(out, "mtu 1400") {
		t.Errorf("the uplink that came later has 1400: %s", out)
	}
}

// A pod that plays the router must not get the node's own IPv6 traffic, also where pods have IPv4 only (CVE-2020-10749).
func TestBuiltinPodIsNoRouter(t *testing.T) {
	for _, subnets := range [][]string{{"10.211.25.0/24"}, {"10.211.25.0/24", "fd00:211:25::/64"}} {
		w := newWorld(t)
		b := w.builtin(subnets...)
		w.run(w.host, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/accept_ra")
		pod := w.pod("evil")
		attach(t, b, pod)
		w.run(pod.NetNS, "ip", "addr", "add", "fe80::666/64", "dev", "eth0", "nodad")
		w.in(pod.NetNS, func() error { return advertiseRouter("eth0") })
		w.serve(w.host, "after", "tcp", 81)
		w.expect(pod.NetNS, "tcp", "10.211.25.1:81", "after", "") // so the node has seen what was sent before
		if routes := w.run(w.host, "ip", "-6", "route", "show", "default"); routes != "" {
			t.Errorf("with pods in %v the node has a default route by a pod: %s", subnets, routes)
		}
	}
}

// advertiseRouter sends a router advertisement (RFC 4861, 4.2) to everybody on a link.
func advertiseRouter(link string) error {
	dev, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	from := &unix.SockaddrInet6{Addr: netip.MustParseAddr("fe80::666").As16(), ZoneId: uint32(dev.Index)}
	to := &unix.SockaddrInet6{Addr: netip.MustParseAddr("ff02::1").As16(), ZoneId: uint32(dev.Index)}
	message := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0} // the kernel adds the sum
	return errors.Join(unix.Bind(fd, from), unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255), unix.Sendto(fd, message, 0, to))
}

func TestBuiltinPortConflicts(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.6.0/24")
	one := netip.MustParseAddr("127.0.0.1")
	holder := w.pod("holder", Port{Protocol: "TCP", HostPort: 80, ContainerPort: 80}, Port{HostPort: 81, ContainerPort: 81, HostIP: one})
	attach(t, b, holder)
	for _, p := range []Port{
		{HostPort: 80, ContainerPort: 8080},
		{HostPort: 80, ContainerPort: 8080, HostIP: one},
		{HostPort: 81, ContainerPort: 8080},
		{HostPort: 81, ContainerPort: 8080, HostIP: netip.IPv4Unspecified()},
	} {
		pod := w.pod("late"+describe(p)[:2]+randomID()[:4], p)
		_, err := b.Attach(t.Context(), pod)
		if !errors.Is(err, ErrPortTaken) || !strings.Contains(err.Error(), holder.ID) {
			t.Errorf("%s: got %v, want an error that names pod %s", describe(p), err, holder.ID)
		}
		detach(t, b, pod)
		w.expectPodGone(b, pod.ID)
	}
	attach(t, b, w.pod("fine", Port{Protocol: "udp", HostPort: 80, ContainerPort: 80}, Port{HostPort: 82, ContainerPort: 82}))
}

// A list of elements that long does not fit into one netlink attribute.
func TestBuiltinManyHostPorts(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.21.0/24", "fd00:211:21::/64")
	var ports []Port
	for i := range 2500 {
		ports = append(ports, Port{HostPort: uint16(8000 + i), ContainerPort: 80})
	}
	pod := w.pod("media", ports...)
	attach(t, b, pod)
	w.serve(pod.NetNS, "media", "tcp", 80)
	w.expect(w.host, "tcp", "127.0.0.1:8000", "media", "")
	w.run(w.host, "nft", "flush", "ruleset")
	if err := b.Ready(); err != nil {
		t.Fatal(err)
	}
	for _, port := range []int{8000, 10499} {
		w.expect(w.host, "tcp", fmt.Sprint("127.0.0.1:", port), "media", "")
	}
	detach(t, b, pod)
	w.expectPodGone(b, pod.ID)
}

func TestBuiltinExhaustion(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.7.0/29") // .2 to .6
	var pods []Pod
	for i := range 5 {
		pods = append(pods, w.pod(fmt.Sprint("p", i)))
		attach(t, b, pods[i])
	}
	late := w.pod("late")
	if _, err := b.Attach(t.Context(), late); !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "10.211.7.0/29") {
		t.Errorf("got %v", err)
	}
	detach(t, b, late)
	detach(t, b, pods[3])
	if got := attach(t, b, late); got.IPs[0] != netip.MustParseAddr("10.211.7.5") {
		t.Errorf("got %v, want the one that was released", got.IPs)
	}
}

func TestBuiltinRestart(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.8.0/24")
	pod := w.pod("a", Port{HostPort: 8080, ContainerPort: 80})
	before := attach(t, b, pod)
	w.serve(pod.NetNS, "a", "tcp", 80)
	b.Close()

	next := &Builtin{Dir: b.Dir, Bridge: b.Bridge, Table: b.Table, Subnets: b.Subnets, NetNS: b.NetNS}
	defer next.Close()
	if err := next.Ready(); err != nil {
		t.Fatal(err)
	}
	w.expect(w.host, "tcp", "127.0.0.1:8080", "a", "")
	if after := attach(t, next, pod); !slices.Equal(after.IPs, before.IPs) {
		t.Errorf("%v before the restart, %v after", before.IPs, after.IPs)
	}
	if other := attach(t, next, w.pod("b")); slices.Equal(other.IPs, before.IPs) {
		t.Errorf("%v was given out twice", other.IPs)
	}
}

// Firewall reloads often begin with "flush ruleset", and a bridge can be deleted by hand.
func TestBuiltinHealsHost(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.9.0/24")
	pod := w.pod("a", Port{HostPort: 8080, ContainerPort: 80})
	attach(t, b, pod)
	w.serve(pod.NetNS, "a", "tcp", 80)
	w.run(w.host, "nft", "flush", "ruleset")
	if err := b.Ready(); err != nil {
		t.Fatal(err)
	}
	w.expect(w.host, "tcp", "127.0.0.1:8080", "a", "")
	w.run(w.host, "ip", "link", "del", b.Bridge)
	if err := b.Ready(); err != nil {
		t.Fatal(err)
	}
	w.expect(w.host, "tcp", "127.0.0.1:8080", "a", "")
	attach(t, b, pod)
	w.expect(w.host, "tcp", "127.0.0.1:8080", "a", "")
}

// Somebody applies a sysctl.conf that turns forwarding off, or takes router advertisements from pods.
func TestBuiltinHealsSysctls(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.43.0/24", "fd00:211:43::/64")
	attach(t, b, w.pod("a"))
	wanted := map[string]string{"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv4/conf/ektest0/route_localnet": "1", "net/ipv6/conf/ektest0/accept_ra": "0"}
	ready := func(b *Builtin) {
		if err := b.Ready(); err != nil {
			t.Fatal(err)
		}
	}
	for name, heal := range map[string]func(){
		"the next pod":              func() { attach(t, b, w.pod("b")) },
		"a question for the status": func() { ready(b) },
		"the next start": func() {
			ready(&Builtin{Dir: b.Dir, Bridge: b.Bridge, Table: b.Table, NetNS: b.NetNS, Subnets: b.Subnets})
		},
	} {
		for sysctl, value := range wanted {
			w.set(sysctl, map[string]string{"1": "0", "0": "2"}[value])
		}
		heal()
		w.in(w.host, func() error {
			for sysctl, value := range wanted {
				if got := readSysctl(sysctl); got != value {
					t.Errorf("after %s: %s is %s", name, sysctl, got)
				}
			}
			return nil
		})
	}
}

func TestBuiltinReplacesNamespace(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.10.0/24")
	pod := w.pod("a")
	before := attach(t, b, pod)
	pod.NetNS = w.namespace("a-again") // the first attempt was broken off and its namespace made anew
	after := attach(t, b, pod)
	if !slices.Equal(before.IPs, after.IPs) {
		t.Errorf("%v, then %v", before.IPs, after.IPs)
	}
	w.serve(pod.NetNS, "a", "tcp", 80)
	w.expect(w.host, "tcp", after.IPs[0].String()+":80", "a", "")
}

// A sweep that runs while pods are attached must not mistake a link without a label yet for a leftover.
func TestBuiltinSweepBesideAttach(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.9.0/24")
	stop := make(chan struct{})
	var sweeping sync.WaitGroup
	sweeping.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := b.Sweep(t.Context(), func(string) bool { return true }); err != nil {
					t.Errorf("sweep: %v", err)
					return
				}
			}
		}
	})
	for i := range 60 {
		pod := w.pod(fmt.Sprintf("p%d", i))
		attach(t, b, pod)
		detach(t, b, pod)
	}
	close(stop)
	sweeping.Wait()
}

func TestBuiltinSweep(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.11.0/24")
	alive, dead, lost, kept := w.pod("alive"), w.pod("dead", Port{HostPort: 80, ContainerPort: 80}), w.pod("lost"), w.pod("kept")
	for _, p := range []Pod{alive, dead, lost, kept} {
		attach(t, b, p)
	}
	b.addresses().release(lost.ID) // books without these two
	b.addresses().release(kept.ID)
	err := b.Sweep(t.Context(), func(id string) bool { return id == alive.ID || id == kept.ID })
	if err != nil {
		t.Fatal(err)
	}
	w.expectPodGone(b, dead.ID)
	w.expectPodGone(b, lost.ID)
	h, _ := b.open()
	if !h.hasLink(alive.ID) || !h.hasLink(kept.ID) {
		t.Error("a living pod lost its link")
	}
	w.serve(alive.NetNS, "alive", "tcp", 80)
	addrs, _ := b.addresses().of(alive.ID, nil)
	w.expect(w.host, "tcp", addrs[0].String()+":80", "alive", "")
}

// A reboot takes the table, and the books stay.
func TestBuiltinDetachWithoutTable(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.77.0.0/24")
	pod := w.pod("p", Port{HostPort: 8080, ContainerPort: 80})
	attach(t, b, pod)
	w.run(w.host, "nft", "delete", "table", "inet", b.tableName())
	detach(t, b, pod)
	w.expectPodGone(b, pod.ID)
}

// Several engines can live on one machine. One that has no bridge yet leaves the half-made link of another alone.
func TestBuiltinSweepOfAnotherEngine(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.77.0.0/24")
	w.run(w.host, "ip", "link", "add", "ekhalfmade", "type", "veth", "peer", "name", "eth0")
	if err := b.Sweep(t.Context(), func(string) bool { return false }); err != nil {
		t.Error(err)
	}
	w.run(w.host, "ip", "link", "delete", "ekhalfmade") // fails when it is gone
}

func TestBuiltinConcurrent(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.12.0/27") // 29 addresses for 20 pods
	pods := make([]Pod, 20)
	for i := range pods {
		pods[i] = w.pod(fmt.Sprint("p", i), Port{HostPort: uint16(8000 + i), ContainerPort: 80})
		w.serve(pods[i].NetNS, pods[i].Name, "tcp", 80)
	}
	for range 3 {
		results := make([]Result, len(pods))
		each(pods, func(i int) {
			var err error
			if results[i], err = b.Attach(context.Background(), pods[i]); err != nil {
				t.Error(err)
			}
		})
		seen := map[netip.Addr]bool{}
		for i, r := range results {
			if len(r.IPs) != 1 || seen[r.IPs[0]] {
				t.Fatalf("pod %d got %v", i, r.IPs)
			}
			seen[r.IPs[0]] = true
			w.expect(pods[(i+1)%len(pods)].NetNS, "tcp", r.IPs[0].String()+":80", pods[i].Name, "")
			w.expect(w.host, "tcp", fmt.Sprint("127.0.0.1:", 8000+i), pods[i].Name, "")
		}
		each(pods, func(i int) {
			if err := b.Detach(context.Background(), pods[i]); err != nil {
				t.Error(err)
			}
		})
		for _, p := range pods {
			w.expectPodGone(b, p.ID)
		}
	}
}

func each(pods []Pod, f func(i int)) {
	var wg sync.WaitGroup
	for i := range pods {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// The same port at the same time: at most one pod gets it, and the losers hold nothing after Detach.
func TestBuiltinConcurrentPort(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.13.0/24")
	pods := make([]Pod, 8)
	for i := range pods {
		pods[i] = w.pod(fmt.Sprint("p", i), Port{HostPort: 80, ContainerPort: 80})
	}
	errs := make([]error, len(pods))
	each(pods, func(i int) { _, errs[i] = b.Attach(context.Background(), pods[i]) })
	won := 0
	for i, err := range errs {
		if err == nil {
			won++
			continue
		}
		if !errors.Is(err, ErrPortTaken) {
			t.Error(err)
		}
		detach(t, b, pods[i])
	}
	if won != 1 {
		t.Errorf("%d pods got one port", won)
	}
}

func TestBuiltinPodCIDR(t *testing.T) {
	w := newWorld(t)
	b := w.builtin()
	if err := b.Ready(); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "kubelet") {
		t.Errorf("without a range: %v", err)
	}
	if err := b.SetPodCIDR("10.211.14.0/24,"); err == nil {
		t.Error("half a range was taken")
	}
	for _, cidr := range []string{"", "10.211.14.0/24"} {
		if err := b.SetPodCIDR(cidr); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Ready(); err != nil {
		t.Fatal(err)
	}
	old := w.pod("old")
	oldIP := attach(t, b, old).IPs[0]
	if err := b.SetPodCIDR("10.211.15.0/24"); err != nil {
		t.Fatal(err)
	}
	fresh := w.pod("fresh")
	ip := attach(t, b, fresh).IPs[0]
	if ip != netip.MustParseAddr("10.211.15.2") {
		t.Errorf("new pod got %s", ip)
	}
	if again := attach(t, b, old); again.IPs[0] != oldIP {
		t.Errorf("the old pod moved from %s to %s", oldIP, again.IPs[0])
	}
	w.serve(old.NetNS, "old", "tcp", 80)
	w.expect(fresh.NetNS, "tcp", oldIP.String()+":80", "old", "")

	next := &Builtin{Dir: b.Dir, Bridge: b.Bridge, Table: b.Table, NetNS: b.NetNS}
	defer next.Close()
	if err := next.Ready(); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if rules := w.run(w.host, "nft", "list", "ruleset"); !strings.Contains(rules, "10.211.14.0/24") {
		t.Errorf("the old range is not masqueraded any more:\n%s", rules)
	}
}

// Ranges can overlap. What is gateway or broadcast address in one of them is no pod's in another.
func TestBuiltinPodCIDROverlaps(t *testing.T) {
	w := newWorld(t)
	b := w.builtin()
	next := func(cidr string) (Pod, netip.Addr) {
		t.Helper()
		if err := b.SetPodCIDR(cidr); err != nil {
			t.Fatal(err)
		}
		pod := w.pod(strings.ReplaceAll(cidr, "/", "-"))
		return pod, attach(t, b, pod).IPs[0]
	}
	next("10.211.26.16/30") // the bridge has .17, the pod .18, and .19 is the broadcast address
	last := netip.MustParseAddr("10.211.26.15")
	b.last.Store(&last)
	holder, got := next("10.211.26.0/24")
	if got != netip.MustParseAddr("10.211.26.20") {
		t.Errorf("behind the earlier range: got %s", got)
	}
	if err := b.SetPodCIDR("10.211.26.20/30"); err != nil {
		t.Fatal(err)
	}
	if err := b.Ready(); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), holder.ID) {
		t.Errorf("a range whose network address is a pod's: %v", err)
	}
	detach(t, b, holder)
	if err := b.Ready(); err != nil {
		t.Error(err)
	}
}

// Without a range of the configuration the default serves until the kubelet tells one, and pods of the default stay whole.
func TestBuiltinDefaultRange(t *testing.T) {
	w := newWorld(t)
	b := w.builtin()
	b.Default = []netip.Prefix{netip.MustParsePrefix("10.211.46.0/24")}
	in := func(pod Pod, cidr string) netip.Addr {
		t.Helper()
		ip := attach(t, b, pod).IPs[0]
		if !netip.MustParsePrefix(cidr).Contains(ip) {
			t.Errorf("got %s, want one of %s", ip, cidr)
		}
		return ip
	}
	before := w.pod("before")
	old := in(before, "10.211.46.0/24")
	w.serve(before.NetNS, "before", "tcp", 80)
	if err := b.SetPodCIDR("10.211.47.0/24"); err != nil {
		t.Fatal(err)
	}
	after := w.pod("after")
	in(after, "10.211.47.0/24")
	w.expect(w.host, "tcp", old.String()+":80", "before", "")
	w.expect(after.NetNS, "tcp", old.String()+":80", "before", "")
	if err := b.Check(t.Context(), before); err != nil {
		t.Error(err)
	}
	restarted := &Builtin{Dir: b.Dir, Bridge: b.Bridge, Table: b.Table, NetNS: b.NetNS, Default: b.Default}
	defer restarted.Close()
	if subnets, err := restarted.subnets(); err != nil || subnets[0] != netip.MustParsePrefix("10.211.47.0/24") {
		t.Errorf("after a restart: %v, %v", subnets, err)
	}
	restarted.Subnets = []netip.Prefix{netip.MustParsePrefix("10.211.48.0/24")}
	if subnets, err := restarted.subnets(); err != nil || subnets[0] != restarted.Subnets[0] {
		t.Errorf("the configuration's: %v, %v", subnets, err)
	}
}

// A pod range where the machine has something else would give pods that nobody reaches.
func TestBuiltinOverlap(t *testing.T) {
	for name, c := range map[string]struct{ command, want string }{
		"the same range":        {"ip addr add 10.211.43.7/24 dev up0", "address 10.211.43.7/24 of link up0"},
		"a wider one":           {"ip addr add 10.211.50.7/16 dev up0", "address 10.211.50.7/16 of link up0"},
		"one address":           {"ip addr add 10.211.43.77/32 dev up0", "address 10.211.43.77/32 of link up0"},
		"IPv6":                  {"ip addr add fd00:211:43::7/64 dev up0 nodad", "fd00:211:43::7/64 of link up0"},
		"a route":               {"ip route add 10.211.43.0/24 via 203.0.113.2", "route 10.211.43.0/24 of link up0"},
		"a route to a part":     {"ip route add 10.211.43.128/25 dev up0", "route 10.211.43.128/25 of link up0"},
		"the route of a tunnel": {"ip route add 10.0.0.0/8 via 203.0.113.2", ""},
		"a neighbour":           {"ip addr add 10.211.44.7/24 dev up0", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.outside() // with a default route
			w.run(w.host, strings.Fields(c.command)...)
			b := w.builtin("10.211.43.0/24", "fd00:211:43::/64")
			err := b.Ready()
			if c.want == "" && err != nil {
				t.Errorf("refused: %v", err)
			}
			if c.want != "" && (!errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "network.builtin.subnets")) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if c.want != "" && strings.Contains(w.run(w.host, "ip", "link"), "ektest0") {
				t.Error("there is a bridge")
			}
		})
	}
}

func TestBuiltinCheck(t *testing.T) {
	ports := []Port{{HostPort: 8080, ContainerPort: 80}, {Protocol: "udp", HostPort: 53, ContainerPort: 53, HostIP: netip.MustParseAddr("127.0.0.1")}}
	for name, c := range map[string]struct {
		damage []string // the pod's eth0 is eth0 inside, the other end LINK
		inside bool
		want   string
	}{
		"healthy":            {},
		"no link":            {[]string{"ip link del LINK"}, false, "eth0 in the pod"},
		"out of the bridge":  {[]string{"ip link set LINK nomaster"}, false, "is not in bridge ektest0"},
		"link down":          {[]string{"ip link set LINK down"}, false, " is down"},
		"bridge down":        {[]string{"ip link set ektest0 down"}, false, "ektest0 is down"},
		"no bridge":          {[]string{"ip link del ektest0"}, false, "bridge ektest0"},
		"no gateway":         {[]string{"ip addr del 10.211.42.1/24 dev ektest0"}, false, "has no address in the range of 10.211.42."},
		"no table":           {[]string{"nft delete table inet ektest"}, false, "no nftables table"},
		"no port":            {[]string{"nft flush map inet ektest any4"}, false, "host port 8080/tcp"},
		"no port of one":     {[]string{"nft flush map inet ektest ip4"}, false, "host port 127.0.0.1:53/udp"},
		"no forwarding":      {[]string{"net/ipv4/ip_forward=0"}, false, "sysctl net.ipv4.ip_forward is 0, not 1"},
		"no IPv6 forwarding": {[]string{"net/ipv6/conf/all/forwarding=0"}, false, "sysctl net.ipv6.conf.all.forwarding is 0, not 1"},
		"eth0 down":          {[]string{"ip link set eth0 down"}, true, "eth0 is down"},
		"no address":         {[]string{"ip -4 addr flush dev eth0"}, true, "lacks its address 10.211.42."},
		"no IPv6 address":    {[]string{"ip -6 addr flush dev eth0 scope global"}, true, "lacks its address fd00:211:42::"},
		"no route":           {[]string{"ip route del default"}, true, "lacks the default route that goes with 10.211.42."},
		"another address":    {[]string{"ip link set eth0 address 02:00:00:00:00:07"}, true, "hardware address 02:00:00:00:00:07"},
		"another's in place": {[]string{"ip link del eth0", "ip link add eth0 type veth peer name other"}, true, "not the other end"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t) // what is damaged there stays so
			b := w.builtin("10.211.42.0/24", "fd00:211:42::/64")
			pod := w.pod("p", ports...)
			defer w.drop(pod.NetNS)
			attach(t, b, pod)
			defer detach(t, b, pod)
			where := w.host
			if c.inside {
				where = pod.NetNS
			}
			for _, command := range c.damage {
				if name, value, is := strings.Cut(command, "="); is {
					w.set(name, value)
					continue
				}
				w.run(where, strings.Fields(strings.ReplaceAll(command, "LINK", linkName(pod.ID)))...)
			}
			err := b.Check(t.Context(), pod)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	w := newWorld(t)
	if err := w.builtin("10.211.42.0/24").Check(t.Context(), w.pod("never")); err == nil || !strings.Contains(err.Error(), "holds no address") {
		t.Errorf("a pod that was never attached: %v", err)
	}
}

// Pods that have an address one after the other answer at once, whichever hardware address each of them has.
func TestBuiltinMAC(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.41.0/29")
	first := attach(t, b, w.pod("first")).IPs[0] // keeps the bridge up, and what the host knows of neighbours
	for _, mac := range []string{"", "02:00:00:00:00:01", "02:00:00:00:00:02", ""} {
		pod := w.pod("m")
		want := hardwareAddr(first.Next()).String()
		if mac != "" {
			pod.Annotations, want = map[string]string{macAnnotation: mac}, mac
		}
		b.last.Store(&first)
		ip := attach(t, b, pod).IPs[0].String()
		attach(t, b, pod)
		if got := w.run(pod.NetNS, "ip", "-o", "link", "show", "eth0"); !strings.Contains(got, "link/ether "+want) {
			t.Errorf("want %s, got %s", want, got)
		}
		w.serve(pod.NetNS, "m", "tcp", 80)
		w.expect(w.host, "tcp", ip+":80", "m", "")
		detach(t, b, pod)
		w.drop(pod.NetNS)
	}
	pod := w.pod("bad")
	pod.Annotations = map[string]string{macAnnotation: "01:00:5e:00:00:01"}
	if _, err := b.Attach(t.Context(), pod); err == nil || !strings.Contains(err.Error(), macAnnotation) {
		t.Errorf("got %v", err)
	}
}

// A client that never stops sending must find the new pod behind the port, not the old one's address.
func TestBuiltinUDPFollowsThePod(t *testing.T) {
	w := newWorld(t)
	outside := w.outside()
	b := w.builtin("10.211.16.0/24")
	from := func() string {
		var answer string
		inside(outside, func() error {
			answer, _ = exchange("203.0.113.2:4444", "203.0.113.1:5353")
			return nil
		})
		return answer
	}
	for _, name := range []string{"one", "two"} {
		from() // makes a flow while the port is closed
		pod := w.pod(name, Port{Protocol: "udp", HostPort: 5353, ContainerPort: 53})
		w.serve(pod.NetNS, name, "udp", 53)
		attach(t, b, pod)
		if got := from(); !strings.HasPrefix(got, name) {
			t.Errorf("got %q, want pod %s", got, name)
		}
		detach(t, b, pod)
	}
}

// Between a firewall's reload and the next look at the table a client makes a flow that nobody translates.
func TestBuiltinUDPAfterHealing(t *testing.T) {
	w := newWorld(t)
	outside := w.outside()
	b := w.builtin("10.211.22.0/24")
	pod := w.pod("dns", Port{Protocol: "udp", HostPort: 5353, ContainerPort: 53})
	w.serve(pod.NetNS, "dns", "udp", 53)
	attach(t, b, pod)
	from := func() (answer string) {
		w.in(outside, func() error { answer, _ = exchange("203.0.113.2:4444", "203.0.113.1:5353"); return nil })
		return answer
	}
	// A firewall of the node's own keeps connection tracking on.
	w.run(w.host, "nft", "flush ruleset; add table inet fw; add chain inet fw in { type filter hook input priority 0; }; add rule inet fw in ct state established accept")
	if got := from(); got != "" {
		t.Fatalf("without a table: %q", got)
	}
	if err := b.Ready(); err != nil {
		t.Fatal(err)
	}
	if got := from(); !strings.HasPrefix(got, "dns") {
		t.Errorf("after the table came back: got %q, want the pod", got)
	}
}

// An association that begins anew in the flow of a pod that is gone would never reach its successor.
func TestBuiltinForgetsSCTP(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.23.0/24")
	pod := w.pod("hss", Port{Protocol: "sctp", HostPort: 3868, ContainerPort: 3869})
	ip := attach(t, b, pod).IPs[0]
	h, err := b.open()
	if err != nil {
		t.Fatal(err)
	}
	client, node := net.IPv4(203, 0, 113, 2).To4(), net.IPv4(203, 0, 113, 1).To4()
	flow := netlink.ConntrackFlow{FamilyType: unix.AF_INET, TimeOut: 100,
		Forward: netlink.IPTuple{Protocol: unix.IPPROTO_SCTP, SrcIP: client, SrcPort: 4711, DstIP: node, DstPort: 3868},
		Reverse: netlink.IPTuple{Protocol: unix.IPPROTO_SCTP, SrcIP: ip.AsSlice(), SrcPort: 3869, DstIP: client, DstPort: 4711}}
	if err := h.links.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, &flow); err != nil {
		t.Fatal(err)
	}
	count := func() (n int) {
		all, err := h.links.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		if err != nil {
			t.Error(err)
		}
		for _, f := range all {
			if f.Forward.Protocol == unix.IPPROTO_SCTP {
				n++
			}
		}
		return n
	}
	if n := count(); n != 1 {
		t.Fatalf("%d flows before", n)
	}
	detach(t, b, pod)
	if n := count(); n != 0 {
		t.Errorf("the flow to the pod that is gone is still there")
	}
}

func TestBuiltinRefusesNonsense(t *testing.T) {
	w := newWorld(t)
	b := w.builtin("10.211.17.0/24")
	for name, c := range map[string]struct {
		pod  Pod
		want string
	}{
		"protocol":  {w.pod("a", Port{Protocol: "icmp", HostPort: 1, ContainerPort: 1}), "tcp, udp and sctp"},
		"no target": {w.pod("b", Port{HostPort: 1}), "container port"},
		"family":    {w.pod("c", Port{HostPort: 1, ContainerPort: 1, HostIP: netip.MustParseAddr("fd00::1")}), "family"},
		"namespace": {Pod{ID: randomID(), NetNS: "/nonexistent"}, "/nonexistent"},
	} {
		_, err := b.Attach(t.Context(), c.pod)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.pod.ID) {
			t.Errorf("%s: %v", name, err)
		}
		detach(t, b, c.pod)
		w.expectPodGone(b, c.pod.ID)
	}
	wrong := &Builtin{Dir: t.TempDir(), Bridge: "lo", Table: "ektest2", NetNS: w.host, Subnets: []netip.Prefix{netip.MustParsePrefix("10.211.45.0/24")}}
	if err := wrong.Ready(); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "cannot use lo as bridge") {
		t.Errorf("lo as bridge: %v", err)
	}
	wrong.Close()
}

func TestBuiltinInfo(t *testing.T) {
	b := &Builtin{Dir: t.TempDir(), Subnets: []netip.Prefix{netip.MustParsePrefix("10.211.18.7/24")}}
	info := b.Info()
	if info["bridge"] != "ek0" || fmt.Sprint(info["subnets"]) != "[10.211.18.0/24]" {
		t.Errorf("%v", info)
	}
}

func TestAddressBook(t *testing.T) {
	book := addresses{t.TempDir(), new(atomic.Pointer[netip.Addr])}
	both := []netip.Prefix{netip.MustParsePrefix("fd00:1::/64"), netip.MustParsePrefix("10.211.19.248/29")}
	ids := []string{randomID(), randomID()}
	first, err := book.reserve(ids[0], both, both)
	if err != nil || fmt.Sprint(first) != "[fd00:1::2 10.211.19.250]" {
		t.Fatalf("%v %v", first, err)
	}
	if held, _ := book.of(ids[0], both); !slices.Equal(held, first) {
		t.Errorf("reserved %v, holds %v", first, held)
	}
	os.Symlink("stranger", filepath.Join(book.dir, "10.211.19.251")) // of one family only
	second, err := book.reserve(ids[1], both, both)
	if err != nil || fmt.Sprint(second) != "[fd00:1::4 10.211.19.252]" {
		t.Errorf("%v %v", second, err)
	}
	if err := errors.Join(book.release(ids[0]), book.release(ids[0])); err != nil {
		t.Error(err)
	}
	owners, _ := book.owners()
	if len(owners) != 3 {
		t.Errorf("left: %v", owners)
	}
}

// A pod that is refused holds nothing: rules that are written from the book at that moment could lead to it.
func TestPortBook(t *testing.T) {
	book := ports{t.TempDir()}
	holder, late := randomID(), randomID()
	if err := book.reserve(holder, []Port{{Protocol: "tcp", HostPort: 80, ContainerPort: 80}}); err != nil {
		t.Fatal(err)
	}
	wanted := []Port{{Protocol: "tcp", HostPort: 81, ContainerPort: 81}, {Protocol: "tcp", HostIP: netip.IPv4Unspecified(), HostPort: 80, ContainerPort: 80}}
	if err := book.reserve(late, wanted); !errors.Is(err, ErrPortTaken) {
		t.Errorf("got %v", err)
	}
	if held, err := book.of(late); err != nil || len(held) > 0 {
		t.Errorf("holds %v, %v", held, err)
	}
}

func TestSubnets(t *testing.T) {
	for cidr, want := range map[string]string{
		"10.1.2.3/16":             "[10.1.0.0/16]",
		"10.1.0.0/16, fd00::/64":  "[10.1.0.0/16 fd00::/64]",
		"10.1.0.0/16,10.2.0.0/16": "more than one subnet of a family",
		"10.1.0.0/31":             "no room",
		"fd00::1/128":             "no room",
		"::ffff:10.0.0.0/112":     "is not a subnet",
		"pods":                    "no '/'",
	} {
		got, err := parseSubnets(cidr)
		if s := fmt.Sprint(got, err); !strings.Contains(s, want) {
			t.Errorf("%s: got %s, want %s", cidr, s, want)
		}
	}
}

func TestLinkName(t *testing.T) {
	if got := linkName("0123456789abcdef0123"); got != "ek0123456789abc" || len(got) != 15 {
		t.Errorf("%s", got)
	}
}

func BenchmarkBuiltinAttach(b *testing.B) {
	w := newWorld(b)
	p := w.builtin("10.211.20.0/24", "fd00:211:20::/64")
	p.Log = nil
	if err := p.Ready(); err != nil {
		b.Fatal(err)
	}
	for _, bench := range []struct {
		name  string
		ports []Port
	}{{"plain", nil}, {"port", []Port{{HostPort: 80, ContainerPort: 80}}}} {
		b.Run(bench.name, func(b *testing.B) {
			var up, down time.Duration
			for i := range b.N {
				b.StopTimer()
				pod := w.pod(fmt.Sprint(bench.name, b.N, "-", i), bench.ports...)
				b.StartTimer()
				start := time.Now()
				attach(b, p, pod)
				up += time.Since(start)
				start = time.Now()
				detach(b, p, pod)
				down += time.Since(start)
				b.StopTimer()
				w.drop(pod.NetNS)
				b.StartTimer()
			}
			b.ReportMetric(float64(up.Microseconds())/float64(b.N), "µs/attach")
			b.ReportMetric(float64(down.Microseconds())/float64(b.N), "µs/detach")
		})
	}
}
