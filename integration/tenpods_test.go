package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// TestTenPodsTwentyTimes brings ten pods up at once, on both networks, lets them talk to each other and to the host,
// and takes them down without a trace, again and again.
func TestTenPodsTwentyTimes(t *testing.T) {
	rounds := engine.Rounds(20, 2)
	if testing.Short() {
		rounds = engine.Rounds(3, 1)
	}
	for _, network := range []string{"builtin", "cni"} {
		t.Run(network, func(t *testing.T) {
			n := start(t, network)
			host := n.greeter()
			var up, down time.Duration
			for range rounds {
				u, d := n.tenPods(host)
				up, down = up+u, down+d
				n.noLeftovers()
				if t.Failed() {
					return
				}
			}
			measured(t, "%d rounds of ten pods at once (%s): up %s, down %s on average", rounds, network,
				(up / time.Duration(rounds)).Round(time.Millisecond), (down / time.Duration(rounds)).Round(time.Millisecond))
		})
	}
}

// greeter serves HTTP on every address of the host and returns its port.
func (n *node) greeter() string {
	l, err := net.Listen("tcp", "0.0.0.0:0")
	must(n.t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "host") })}
	go server.Serve(l)
	n.t.Cleanup(func() { server.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

type tenth struct{ name, pod, container, ip string }

func (n *node) tenPods(hostPort string) (up, down time.Duration) {
	n.t.Helper()
	pods := make([]tenth, 10)
	begin := time.Now()
	must(n.t, each(pods, func(i int, p *tenth) (err error) {
		*p, err = n.webPod(fmt.Sprintf("ten%d", i))
		return err
	}))
	up = time.Since(begin)
	subnet, seen := netip.MustParsePrefix(n.Subnet), map[string]bool{}
	for _, p := range pods {
		addr, err := netip.ParseAddr(p.ip)
		if err != nil || !subnet.Contains(addr) || seen[p.ip] {
			n.t.Errorf("address %q is wrong, outside %s or given twice", p.ip, subnet)
		}
		seen[p.ip] = true
	}
	must(n.t, each(pods, func(i int, p *tenth) error { return n.talk(*p, pods[(i+1)%10], hostPort) }))
	begin = time.Now()
	must(n.t, each(pods, func(_ int, p *tenth) error {
		if _, err := n.Runtime.StopPodSandbox(n.ctx(), &cri.StopPodSandboxRequest{PodSandboxId: p.pod}); err != nil {
			return err
		}
		_, err := n.Runtime.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: p.pod})
		return err
	}))
	return up, time.Since(begin)
}

func each(pods []tenth, do func(int, *tenth) error) error {
	var g errgroup.Group
	for i := range pods {
		g.Go(func() error { return do(i, &pods[i]) })
	}
	return g.Wait()
}

// webPod runs a pod that serves its own name over HTTP.
func (n *node) webPod(name string) (tenth, error) {
	cfg := n.Pod(name)
	r, err := n.Runtime.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		return tenth{}, err
	}
	c := engine.Container("web", busybox, "sh", "-c", "mkdir /tmp/w && hostname > /tmp/w/index.html && exec httpd -f -p 80 -h /tmp/w")
	created, err := n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: r.PodSandboxId, Config: c, SandboxConfig: cfg})
	if err != nil {
		return tenth{}, err
	}
	if _, err := n.Runtime.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		return tenth{}, err
	}
	s, err := n.Runtime.PodSandboxStatus(n.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: r.PodSandboxId})
	return tenth{name, r.PodSandboxId, created.ContainerId, s.GetStatus().GetNetwork().GetIp()}, err
}

// talk lets the host ask a, and a ask b and the host.
func (n *node) talk(a, b tenth, hostPort string) error {
	if err := fetch(n.ctx(), "http://"+a.ip+"/"); err != nil {
		return err
	}
	// Not wget: Debian's static busybox crashes in it.
	script := fmt.Sprintf(`get() { printf 'GET / HTTP/1.0\r\n\r\n' | nc -w %d $1 $2; }
		for i in $(seq 60); do get %s 80 && break; usleep 100000; done; get %s %s`, engine.Seconds(3), b.ip, gateway(a.ip), hostPort)
	r, err := n.Runtime.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: a.container, Cmd: []string{"sh", "-c", script}, Timeout: engine.Seconds(30)})
	if err != nil {
		return err
	}
	if r.ExitCode != 0 || !strings.Contains(string(r.Stdout), b.name+"\n") || !strings.HasSuffix(string(r.Stdout), "host") {
		return fmt.Errorf("%s cannot reach %s or the host: code %d, %q %q", a.ip, b.ip, r.ExitCode, r.Stdout, r.Stderr)
	}
	return nil
}

// fetch asks until the server is up.
func fetch(ctx context.Context, url string) error {
	var last error
	for deadline := time.Now().Add(engine.Patience(20 * time.Second)); time.Now().Before(deadline); {
		q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		r, err := (&http.Client{Timeout: engine.Patience(20 * time.Second)}).Do(q)
		if err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("%s", r.Status)
		}
		last = err
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("cannot fetch %s: %w", url, last)
}
