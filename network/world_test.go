package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A world is a machine of its own: a network namespace plays the host, others play pods and the outside. The
// machine that runs the test keeps its firewall, its routes and its sysctls.
type world struct {
	t    testing.TB
	dir  string
	host string // path of the namespace
}

func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root, for example with sudo make test")
	}
	w := &world{t: t, dir: t.TempDir()}
	w.host = w.namespace("host")
	return w
}

// namespace makes a network namespace, pinned until the test ends, with loopback up.
func (w *world) namespace(name string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		w.t.Fatal(err)
	}
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	if err != nil {
		w.t.Fatalf("cannot make a network namespace: %v", err)
	}
	w.t.Cleanup(func() { w.drop(path) })
	return path
}

func (w *world) drop(path string) { unix.Unmount(path, unix.MNT_DETACH) }

// onOwnThread runs f on a thread that ends with it.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread's namespace is changed
		done <- f()
	}()
	return <-done
}

// in runs f inside a namespace.
func (w *world) in(path string, f func() error) {
	w.t.Helper()
	if err := inside(path, f); err != nil {
		w.t.Fatal(err)
	}
}

func inside(path string, f func() error) error {
	return onOwnThread(func() error {
		ns, err := netns.GetFromPath(path)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			return err
		}
		return f()
	})
}

// set changes a sysctl of the host.
func (w *world) set(sysctl, value string) {
	w.t.Helper()
	w.in(w.host, func() error { return os.WriteFile("/proc/sys/"+sysctl, []byte(value), 0) })
}

// run runs a program in a namespace and returns what it prints.
func (w *world) run(path string, argv ...string) string {
	w.t.Helper()
	var out []byte
	err := inside(path, func() error {
		var err error
		out, err = exec.Command(argv[0], argv[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		w.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// builtin is a provider whose host is the world's; the test ends with a Teardown and a look for leftovers.
func (w *world) builtin(subnets ...string) *Builtin {
	b := &Builtin{Dir: filepath.Join(w.dir, "network"), Bridge: "ektest0", Table: "ektest", NetNS: w.host, Log: testLog(w.t)}
	for _, s := range subnets {
		b.Subnets = append(b.Subnets, netip.MustParsePrefix(s))
	}
	w.t.Cleanup(func() {
		if err := b.Teardown(context.Background()); err != nil {
			w.t.Error(err)
		}
		w.expectNothing(b)
	})
	return b
}

// expectNothing looks for everything that a pod or the engine could have left in the host's namespace and the books.
func (w *world) expectNothing(b *Builtin) {
	w.t.Helper()
	for _, dir := range []string{b.addresses().dir, b.ports().dir} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			w.t.Errorf("leftover in the books: %s", e.Name())
		}
	}
	w.in(w.host, func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if strings.HasPrefix(l.Attrs().Name, "ek") {
				w.t.Errorf("leftover link %s", l.Attrs().Name)
			}
		}
		return err
	})
	if rules := w.run(w.host, "nft", "list", "ruleset"); strings.Contains(rules, b.tableName()) {
		w.t.Errorf("leftover rules:\n%s", rules)
	}
}

func (w *world) pod(name string, ports ...Port) Pod {
	return Pod{ID: randomID(), Namespace: "default", Name: name, UID: "uid-" + name, NetNS: w.namespace(name), Ports: ports}
}

func randomID() string {
	raw := make([]byte, 32)
	rand.Read(raw)
	return hex.EncodeToString(raw)
}

func attach(t testing.TB, p Provider, pod Pod) Result {
	t.Helper()
	r, err := p.Attach(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func detach(t testing.TB, p Provider, pod Pod) {
	t.Helper()
	if err := p.Detach(context.Background(), pod); err != nil {
		t.Fatal(err)
	}
}

// serve answers every connection or datagram to port with "name <peer's address>".
func (w *world) serve(ns, name, network string, port int) {
	w.t.Helper()
	if strings.HasPrefix(network, "udp") {
		w.serveUDP(ns, name, port)
		return
	}
	var l net.Listener
	w.in(ns, func() (err error) { l, err = net.Listen(network, fmt.Sprintf(":%d", port)); return })
	w.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, name, " ", c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
			c.Close()
		}
	}()
}

func (w *world) serveUDP(ns, name string, port int) {
	var c *net.UDPConn
	w.in(ns, func() (err error) { c, err = net.ListenUDP("udp", &net.UDPAddr{Port: port}); return })
	w.t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			c.WriteToUDPAddrPort([]byte(name+" "+from.Addr().Unmap().String()), from)
		}
	}()
}

// call connects from a namespace and returns what the other side says.
func call(ns, network, address string) (answer string, err error) {
	err = inside(ns, func() error {
		c, err := net.DialTimeout(network, address, 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(2 * time.Second))
		if strings.HasPrefix(network, "udp") {
			c.Write([]byte("?"))
			buf := make([]byte, 100)
			n, err := c.Read(buf)
			answer = string(buf[:n])
			return err
		}
		data, err := io.ReadAll(c)
		answer = string(data)
		return err
	})
	return answer, err
}

// expect calls and compares the answer's first word, and the second (the peer that the server saw) when it is given.
func (w *world) expect(ns, network, address, name, peer string) {
	w.t.Helper()
	got, err := call(ns, network, address)
	if err != nil {
		w.t.Errorf("%s to %s: %v\n%s", network, address, err, w.run(w.host, "nft", "list", "ruleset"))
		return
	}
	gotName, gotPeer, _ := strings.Cut(got, " ")
	if gotName != name || peer != "" && gotPeer != peer {
		w.t.Errorf("%s to %s: got answer %q, want %q from peer %q", network, address, got, name, peer)
	}
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, nil))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// outside makes a namespace behind an uplink of the host: host 203.0.113.1 and 2001:db8:1::1, outside .2 and ::2,
// which knows no route to pods.
func (w *world) outside() string {
	ns := w.namespace("outside")
	for _, side := range []string{w.host, ns} { // link-local addresses at once: the host asks for neighbours with them
		w.run(side, "sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad")
	}
	w.run(w.host, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1", "netns", w.nsName(ns))
	for _, c := range []string{"addr add 203.0.113.1/24 dev up0", "addr add 2001:db8:1::1/64 dev up0 nodad", "link set up0 mtu 1400 up", "route add default via 203.0.113.2"} {
		w.run(w.host, append([]string{"ip"}, strings.Fields(c)...)...)
	}
	for _, c := range []string{"addr add 203.0.113.2/24 dev up1", "addr add 2001:db8:1::2/64 dev up1 nodad", "link set up1 up"} {
		w.run(ns, append([]string{"ip"}, strings.Fields(c)...)...)
	}
	return ns
}

// nsName makes a namespace known to ip(8), which takes process ids and names in /run/netns only: a process in it.
func (w *world) nsName(path string) string {
	var cmd *exec.Cmd
	w.in(path, func() error {
		cmd = exec.Command("sleep", "60")
		return cmd.Start()
	})
	w.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return fmt.Sprint(cmd.Process.Pid)
}

// exchange sends one datagram between two fixed addresses and returns the answer.
func exchange(from, to string) (string, error) {
	c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from)), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	c.Write([]byte("?"))
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}
