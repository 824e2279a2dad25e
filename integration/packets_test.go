package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/internal/namespace"
)

// These tests move packets between the namespaces of real pods and the machine's own. The processes at both ends are this
// test's, on threads inside the namespaces: what a container would do there, without its image.

// A place is where a packet comes from or goes to.
type place struct {
	t     *testing.T
	netns string // empty: the machine's own
	ips   []netip.Addr
}

func (n *node) place(pod string) place {
	n.t.Helper()
	p := place{t: n.t, netns: filepath.Join(n.State, "pods", pod, "ns", "net")}
	status := n.podStatus(pod).GetNetwork()
	for _, text := range append([]string{status.GetIp()}, more(status)...) {
		ip, err := netip.ParseAddr(text)
		must(n.t, err)
		p.ips = append(p.ips, ip)
	}
	return p
}

func more(status *cri.PodSandboxNetworkStatus) (ips []string) {
	for _, ip := range status.GetAdditionalIps() {
		ips = append(ips, ip.GetIp())
	}
	return ips
}

func (p place) do(f func() error) error {
	if p.netns == "" {
		return f()
	}
	return namespace.InNet(p.netns, f)
}

// serve answers every connection, or datagram, to a port with a name. A container would do it under these addresses, too.
func (p place) serve(network string, port int, name string) {
	p.t.Helper()
	if network == "udp" {
		var c net.PacketConn
		must(p.t, p.do(func() (err error) { c, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port)); return err }))
		p.t.Cleanup(func() { c.Close() })
		go func() {
			buffer := make([]byte, 100)
			for {
				_, from, err := c.ReadFrom(buffer)
				if err != nil {
					return
				}
				c.WriteTo([]byte(name), from)
			}
		}()
		return
	}
	var l net.Listener
	must(p.t, p.do(func() (err error) { l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); return err }))
	p.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, name)
			c.Close()
		}
	}()
}

// ask connects, or sends a datagram, and returns the answer. A datagram can be lost, and is sent again.
func (p place) ask(network string, ip netip.Addr, port int) (answer string, err error) {
	address := netip.AddrPortFrom(ip, uint16(port)).String()
	for range 3 {
		var c net.Conn
		err = p.do(func() (err error) {
			c, err = net.DialTimeout(network, address, engine.Patience(5*time.Second))
			return err
		})
		if err != nil {
			return "", err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(engine.Patience(5 * time.Second)))
		if network == "udp" {
			c.Write([]byte("?"))
			buffer := make([]byte, 100)
			var n int
			if n, err = c.Read(buffer); err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
				return string(buffer[:n]), err
			}
			continue
		}
		data, err := io.ReadAll(c)
		return string(data), err
	}
	return "", err
}

// wants asks again for a while where nothing answers at an IPv6 address: the bridge plugin's cannot be used before the kernel has made
// sure that nobody else has them.
func (p place) wants(network string, ip netip.Addr, port int, name string) {
	p.t.Helper()
	got, err := p.ask(network, ip, port)
	for end := time.Now().Add(engine.Patience(20 * time.Second)); err != nil && ip.Is6() && time.Now().Before(end); got, err = p.ask(network, ip, port) {
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil || got != name {
		p.t.Errorf("%s to %s, port %d: answer %q, want %q: %v", network, ip, port, got, name, err)
	}
}

// refusedAt checks that nothing answers, and that this is told at once.
func (p place) refusedAt(ip netip.Addr, port int) {
	p.t.Helper()
	if got, err := p.ask("tcp", ip, port); !errors.Is(err, unix.ECONNREFUSED) {
		p.t.Errorf("tcp to %s, port %d: answer %q, error %v, want that the connection is refused", ip, port, got, err)
	}
}

// onBoth runs a test on a node of each network. Prepare changes it before it starts.
func onBoth(t *testing.T, prepare func(*node), test func(*node)) {
	for _, network := range []string{"builtin", "cni"} {
		t.Run(network, func(t *testing.T) {
			n := prepareNode(t, network)
			prepare(n)
			must(t, n.Start())
			test(n)
		})
	}
}

// dualStack gives the pods a second range, and the machine its forwarding back afterwards.
func dualStack(n *node) {
	var x, y int
	fmt.Sscanf(n.Subnet, "10.%d.%d.", &x, &y)
	n.Subnet6 = fmt.Sprintf("fd42:%x:%x::/64", x, y)
	const forwarding = "/proc/sys/net/ipv6/conf/all/forwarding"
	before, err := os.ReadFile(forwarding)
	if err != nil {
		n.t.Skipf("this machine has no IPv6: %v", err)
	}
	n.t.Cleanup(func() { os.WriteFile(forwarding, before, 0o644) })
}

func gateways(n *node) []netip.Addr {
	list := []netip.Addr{netip.MustParsePrefix(n.Subnet).Addr().Next()}
	if n.Subnet6 != "" {
		list = append(list, netip.MustParsePrefix(n.Subnet6).Addr().Next())
	}
	return list
}

func TestDualStack(t *testing.T) {
	onBoth(t, dualStack, func(n *node) {
		one, two := n.place(n.runPod(n.Pod("one"))), n.place(n.runPod(n.Pod("two")))
		for _, p := range []place{one, two} {
			if len(p.ips) != 2 || !netip.MustParsePrefix(n.Subnet).Contains(p.ips[0]) || !netip.MustParsePrefix(n.Subnet6).Contains(p.ips[1]) {
				n.t.Fatalf("a pod has the addresses %v, want one of %s and then one of %s", p.ips, n.Subnet, n.Subnet6)
			}
		}
		two.serve("tcp", 80, "two")
		for _, ip := range two.ips {
			one.wants("tcp", ip, 80, "two")
			place{t: n.t}.wants("tcp", ip, 80, "two")
		}
	})
}

// TestHostPorts: a host port answers on the addresses of the machine, to the machine itself, to other pods and to the pod that
// has it; one that names an address answers there alone.
func TestHostPorts(t *testing.T) {
	onBoth(t, dualStack, func(n *node) {
		port := func(protocol cri.Protocol, ip string, container int32) *cri.PortMapping {
			return &cri.PortMapping{Protocol: protocol, HostIp: ip, HostPort: int32(freePort(n.t)), ContainerPort: container}
		}
		gw := gateways(n)
		tcp, udp := port(cri.Protocol_TCP, "", 80), port(cri.Protocol_UDP, "", 53)
		local, bridge := port(cri.Protocol_TCP, "127.0.0.1", 80), port(cri.Protocol_TCP, gw[0].String(), 80)
		other := n.place(n.runPod(n.Pod("other"))) // first, since with it the bridge has its addresses
		cfg := n.Pod("serving")
		cfg.PortMappings = []*cri.PortMapping{tcp, udp, local, bridge}
		serving := n.place(n.runPod(cfg))
		serving.serve("tcp", 80, "tcp")
		serving.serve("udp", 53, "udp")

		machine, loopback := place{t: n.t}, netip.MustParseAddr("127.0.0.1")
		for _, from := range []place{machine, other, serving} { // the last is the hairpin
			for _, ip := range gw {
				from.wants("tcp", ip, int(tcp.HostPort), "tcp")
				from.wants("udp", ip, int(udp.HostPort), "udp")
			}
			from.wants("tcp", gw[0], int(bridge.HostPort), "tcp")
			from.refusedAt(gw[0], int(local.HostPort))
		}
		machine.wants("tcp", loopback, int(tcp.HostPort), "tcp")
		machine.wants("udp", loopback, int(udp.HostPort), "udp")
		machine.wants("tcp", loopback, int(local.HostPort), "tcp")
		machine.refusedAt(loopback, int(bridge.HostPort))
		if n.Network == "builtin" { // the kernel routes nothing from ::1, so nobody pretends to listen there
			machine.refusedAt(netip.IPv6Loopback(), int(tcp.HostPort))
		}
		n.sctp(other)
	})
}

// sctp sends an association's first packet to a host port, and back. Both ends are raw sockets, since many kernels have no
// SCTP of their own and route and translate it all the same.
func (n *node) sctp(from place) {
	n.t.Helper()
	cfg := n.Pod("sctp")
	mapping := &cri.PortMapping{Protocol: cri.Protocol_SCTP, HostPort: int32(freePort(n.t)), ContainerPort: 3868}
	cfg.PortMappings = []*cri.PortMapping{mapping}
	to := n.place(n.runPod(cfg))
	server, client := to.rawSCTP(), from.rawSCTP()
	const tag = 0x5ca1ab1e
	gw := gateways(n)[0]
	sendSCTP(n.t, client, gw, 4711, uint16(mapping.HostPort), 1, tag)
	source, sport, dport, chunk := receiveSCTP(n.t, server)
	if dport != 3868 || chunk != 1 {
		n.t.Errorf("the pod received chunk %d at SCTP port %d, want an INIT at 3868", chunk, dport)
	}
	sendSCTP(n.t, server, source, 3868, sport, 2, tag)
	if source, sport, dport, chunk = receiveSCTP(n.t, client); source != gw || sport != uint16(mapping.HostPort) || dport != 4711 || chunk != 2 {
		n.t.Errorf("the answer is chunk %d from %s port %d to port %d, want INIT ACK from %s port %d to 4711", chunk, source, sport, dport, gw, mapping.HostPort)
	}
}

func (p place) rawSCTP() *os.File {
	p.t.Helper()
	fd := -1
	must(p.t, p.do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		return err
	}))
	limit := unix.NsecToTimeval(int64(engine.Patience(10 * time.Second)))
	must(p.t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
	f := os.NewFile(uintptr(fd), "sctp")
	p.t.Cleanup(func() { f.Close() })
	return f
}

// sendSCTP sends a chunk of 20 bytes, INIT (1) or INIT ACK (2) of RFC 9260. Connection tracking checks the sum.
func sendSCTP(t *testing.T, from *os.File, to netip.Addr, source, destination uint16, chunk byte, tag uint32) {
	t.Helper()
	verification := tag
	if chunk == 1 {
		verification = 0 // of an INIT
	}
	packet := binary.BigEndian.AppendUint16(nil, source)
	packet = binary.BigEndian.AppendUint16(packet, destination)
	packet = binary.BigEndian.AppendUint32(packet, verification)
	packet = append(packet, 0, 0, 0, 0, chunk, 0, 0, 20)
	packet = binary.BigEndian.AppendUint32(packet, tag)
	packet = binary.BigEndian.AppendUint32(packet, 1<<16) // window
	packet = append(packet, 0, 1, 0, 1)                   // streams
	packet = binary.BigEndian.AppendUint32(packet, 1)
	binary.LittleEndian.PutUint32(packet[8:], crc32.Checksum(packet, crc32.MakeTable(crc32.Castagnoli)))
	must(t, unix.Sendto(int(from.Fd()), packet, 0, &unix.SockaddrInet4{Addr: to.As4()}))
}

func receiveSCTP(t *testing.T, at *os.File) (source netip.Addr, sport, dport uint16, chunk byte) {
	t.Helper()
	buffer := make([]byte, 2000)
	n, _, err := unix.Recvfrom(int(at.Fd()), buffer, 0)
	if err != nil {
		t.Fatalf("no SCTP packet came: %v", err)
	}
	header := int(buffer[0]&0xf) * 4
	if n < header+13 {
		t.Fatalf("%d bytes are no SCTP packet", n)
	}
	source, _ = netip.AddrFromSlice(buffer[12:16])
	packet := buffer[header:n]
	return source, binary.BigEndian.Uint16(packet), binary.BigEndian.Uint16(packet[2:]), packet[12]
}

// TestMTU: pods have the MTU of the uplink or that of the configuration. A packet of that size passes whole; one that is
// a byte larger does not leave.
func TestMTU(t *testing.T) {
	for _, mtu := range []int{0, 1380} {
		t.Run(fmt.Sprint("configured ", mtu), func(t *testing.T) {
			onBoth(t, func(n *node) { n.MTU = mtu }, func(n *node) {
				want := mtu
				if want == 0 && n.Network == "cni" {
					return // the bridge plugin takes no MTU from an uplink
				}
				if want == 0 {
					want = uplinkMTU(n.t)
				}
				one, two := n.place(n.runPod(n.Pod("one"))), n.place(n.runPod(n.Pod("two")))
				two.serve("udp", 53, "two")
				one.wants("udp", two.ips[0], 53, "two")
				one.whole(two.ips[0], want, nil)
				one.whole(two.ips[0], want+1, unix.EMSGSIZE)
			})
		})
	}
}

// whole sends a packet of a size that must not be fragmented (ip(7), IP_MTU_DISCOVER), and takes the answer.
func (p place) whole(to netip.Addr, size int, want error) {
	p.t.Helper()
	err := p.do(func() error {
		c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: to.AsSlice(), Port: 53})
		if err != nil {
			return err
		}
		defer c.Close()
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		})
		if err != nil {
			return err
		}
		c.SetDeadline(time.Now().Add(engine.Patience(10 * time.Second)))
		if _, err := c.Write(make([]byte, size-28)); err != nil { // headers of IPv4 and UDP
			return err
		}
		_, err = c.Read(make([]byte, 100))
		return err
	})
	if !errors.Is(err, want) {
		p.t.Errorf("a packet of %d bytes: %v, want %v", size, err, want)
	}
}

// uplinkMTU is that of the interface with the default route: a line of /proc/net/route with destination 0.
func uplinkMTU(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/net/route")
	must(t, err)
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == "00000000" {
			link, err := net.InterfaceByName(f[0])
			must(t, err)
			return link.MTU
		}
	}
	return 1500 // there is no uplink
}

// TestBandwidth compares pods with and without the annotations. The limits are low enough for a busy machine to reach them.
func TestBandwidth(t *testing.T) {
	onBoth(t, func(n *node) {
		n.Conflist = strings.Replace(n.BridgeConflist(), `"snat": true}`, `"snat": true}, {"type": "bandwidth", "capabilities": {"bandwidth": true}}`, 1)
	}, func(n *node) {
		cfg := n.Pod("limited")
		cfg.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "4M"}
		limited, free, other := n.place(n.runPod(cfg)), n.place(n.runPod(n.Pod("free"))), n.place(n.runPod(n.Pod("other")))
		const size = 1 << 20 // at 8 Mbit/s a second and at 4 Mbit/s two, less a tenth of a second
		unlimited := max(other.transfer(free, size), free.transfer(other, size))
		ingress, egress := other.transfer(limited, size), limited.transfer(other, size)
		measured(n.t, "1 MiB into and out of a pod on %s: %s unlimited, %s at 8M, %s at 4M", n.Network, unlimited.Round(time.Millisecond), ingress.Round(10*time.Millisecond), egress.Round(10*time.Millisecond))
		if ingress < 700*time.Millisecond || egress < 1500*time.Millisecond {
			n.t.Errorf("1 MiB took %s at 8 Mbit/s and %s at 4 Mbit/s", ingress, egress)
		}
		if unlimited > ingress/2 {
			n.t.Errorf("1 MiB took %s where nothing limits it, and %s at 8 Mbit/s", unlimited, ingress)
		}
	})
}

// TestMAC: a pod has the hardware address that its annotation names.
func TestMAC(t *testing.T) {
	onBoth(t, func(n *node) {
		n.Conflist = strings.Replace(n.BridgeConflist(), `"type": "bridge",`, `"type": "bridge", "capabilities": {"mac": true},`, 1)
	}, func(n *node) {
		cfg := n.Pod("own")
		cfg.Annotations = map[string]string{"network.evenkeel.dev/mac": "02:00:00:00:00:4d"}
		own, other := n.place(n.runPod(cfg)), n.place(n.runPod(n.Pod("other")))
		must(t, own.do(func() error {
			eth0, err := net.InterfaceByName("eth0")
			if err == nil && eth0.HardwareAddr.String() != "02:00:00:00:00:4d" {
				n.t.Errorf("eth0 has %s", eth0.HardwareAddr)
			}
			return err
		}))
		own.serve("tcp", 80, "own")
		other.wants("tcp", own.ips[0], 80, "own")
	})
}

// TestSysctlsOfInterfaces are set when the network has made the interface.
func TestSysctlsOfInterfaces(t *testing.T) {
	onBoth(t, func(*node) {}, func(n *node) {
		cfg := n.Pod("tuned")
		cfg.Linux.Sysctls = map[string]string{"net.ipv4.conf.eth0.arp_notify": "1", "net/ipv4/neigh/eth0/ucast_solicit": "7", "net.ipv4.conf.lo.arp_notify": "1"}
		must(t, n.place(n.runPod(cfg)).do(func() error {
			for file, want := range map[string]string{"conf/eth0/arp_notify": "1", "neigh/eth0/ucast_solicit": "7", "conf/lo/arp_notify": "1"} {
				if got, err := os.ReadFile("/proc/sys/net/ipv4/" + file); err != nil || strings.TrimSpace(string(got)) != want {
					n.t.Errorf("%s is %q, want %s: %v", file, got, want, err)
				}
			}
			return nil
		}))
		for _, key := range []string{"net.ipv4.conf.eth7.arp_notify", "net.ipv4.conf.eth0.nothing"} {
			cfg := n.Pod("mistuned")
			cfg.Linux.Sysctls = map[string]string{key: "1"}
			_, err := n.Runtime.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: cfg})
			refused(n.t, err, codes.InvalidArgument, key)
		}
	})
}

// TestCheckNetwork: who asks is told whether a pod still has the network that it was given.
func TestCheckNetwork(t *testing.T) {
	onBoth(t, func(*node) {}, func(n *node) {
		cfg := n.Pod("checked")
		cfg.PortMappings = []*cri.PortMapping{{HostPort: 18471, ContainerPort: 80}}
		pod := n.runPod(cfg)
		n.says(`"networkCheck": {
      "status": "ok"
    }`, "inspect", "--check-network", pod)
		if out, err := n.evenkeel("inspect", pod); err != nil || strings.Contains(out, "networkCheck") {
			n.t.Errorf("checked without being asked: %v\n%s", err, out)
		}
		must(t, n.place(pod).do(func() error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.LinkSetDown(eth0) // and with it its routes
		}))
		if out, err := n.evenkeel("inspect", "--check-network", pod); err == nil || !strings.Contains(out, `"status": "broken"`) {
			n.t.Errorf("a broken pod: %v\n%s", err, out)
		}
		n.stopPod(pod)
		if out, err := n.evenkeel("inspect", "--check-network", pod); err == nil || !strings.Contains(out, "it is not ready") {
			n.t.Errorf("a stopped pod: %v\n%s", err, out)
		}
		cfg = n.Pod("hosts")
		cfg.Linux.SecurityContext = &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}}
		n.says(`"status": "unknown"`, "inspect", "--check-network", n.runPod(cfg))
	})
}

// transfer sends bytes over TCP and tells how long it took until the other side had them.
func (p place) transfer(to place, size int64) time.Duration {
	p.t.Helper()
	var l net.Listener
	must(p.t, to.do(func() (err error) { l, err = net.Listen("tcp4", ":0"); return err }))
	defer l.Close()
	received := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.CopyN(io.Discard, c, size)
			c.Close()
		}
		received <- err
	}()
	var c net.Conn
	address := netip.AddrPortFrom(to.ips[0], uint16(l.Addr().(*net.TCPAddr).Port)).String()
	must(p.t, p.do(func() (err error) { c, err = net.Dial("tcp4", address); return err }))
	defer c.Close()
	begun := time.Now()
	_, err := io.CopyN(c, zeroes{}, size)
	must(p.t, err)
	must(p.t, <-received)
	return time.Since(begun)
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }
