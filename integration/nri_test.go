package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// A plugin is one of the Node Resource Interface, over the library's own stub. It writes down what it hears.
type plugin struct {
	t    *testing.T
	stub stub.Stub
	// What it does when asked; nil: nothing. A container is known to the test by its name.
	onRunPod func(ctx context.Context, pod *api.PodSandbox) error
	onCreate func(ctx context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	onUpdate func(c *api.Container, r *api.LinuxResources) []*api.ContainerUpdate
	onStart  func(c *api.Container) error
	onSync   func(ctx context.Context)

	closed chan struct{}
	ready  chan struct{}
	once   sync.Once
	conn   net.Conn

	mu         sync.Mutex // guards what follows
	heard      []string   // "CreateContainer main"
	synced     []string   // names of pods and containers of the last Synchronize
	containers map[string]*api.Container
}

func (p *plugin) hear(what, name string, c *api.Container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heard = append(p.heard, what+" "+name)
	if p.containers == nil {
		p.containers = map[string]*api.Container{}
	}
	if c != nil {
		p.containers[what+" "+name] = c
	}
}

func (p *plugin) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.heard)
}

func (p *plugin) container(event string) *api.Container {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.containers[event]
}

func (p *plugin) Synchronize(ctx context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	if p.onSync != nil {
		p.onSync(ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.synced = nil
	for _, pod := range pods {
		p.synced = append(p.synced, pod.Name)
	}
	for _, c := range containers {
		p.synced = append(p.synced, c.Name)
	}
	p.once.Do(func() { close(p.ready) })
	return nil, nil
}

func (p *plugin) RunPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	p.hear("RunPodSandbox", pod.Name, nil)
	if p.onRunPod != nil {
		return p.onRunPod(ctx, pod)
	}
	return nil
}

func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, r *api.LinuxResources) error {
	p.hear("UpdatePodSandbox", fmt.Sprint(pod.Name, " ", r.GetCpu().GetShares().GetValue()), nil)
	return nil
}

func (p *plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.hear("PostUpdatePodSandbox", fmt.Sprint(pod.Name, " ", pod.GetLinux().GetPodResources().GetCpu().GetShares().GetValue()), nil)
	return nil
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.hear("StopPodSandbox", pod.Name, nil)
	return nil
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.hear("RemovePodSandbox", pod.Name, nil)
	return nil
}

func (p *plugin) CreateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.hear("CreateContainer", c.Name, c)
	if p.onCreate != nil {
		return p.onCreate(ctx, pod, c)
	}
	return nil, nil, nil
}

func (p *plugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.hear("PostCreateContainer", c.Name, c)
	return nil
}

func (p *plugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.hear("StartContainer", c.Name, c)
	if p.onStart != nil {
		return p.onStart(c)
	}
	return nil
}

func (p *plugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.hear("PostStartContainer", c.Name, c)
	return nil
}

func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.hear("UpdateContainer", c.Name, c)
	if p.onUpdate != nil {
		return p.onUpdate(c, r), nil
	}
	return nil, nil
}

func (p *plugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.hear("PostUpdateContainer", c.Name, c)
	return nil
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.hear("StopContainer", c.Name, c)
	return nil, nil
}

func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.hear("RemoveContainer", c.Name, c)
	return nil
}

// drop ends the connection as the death of the plugin's process would.
func (p *plugin) drop() { p.conn.Close() }

// silent keeps the stub's chatter out of the test's output.
type silent struct{}

func (silent) Debugf(context.Context, string, ...any) {}
func (silent) Infof(context.Context, string, ...any)  {}
func (silent) Warnf(context.Context, string, ...any)  {}
func (silent) Errorf(context.Context, string, ...any) {}

// nriNode is an engine with the Node Resource Interface.
func nriNode(t *testing.T, more string) *node {
	t.Helper()
	n := prepareNode(t, "builtin")
	n.Config = fmt.Sprintf("nri.socket = %q\n", n.nriSocket()) + more
	must(t, n.Start())
	n.pull(busybox)
	return n
}

func (n *node) nriSocket() string { return filepath.Join(n.State, "nri.sock") }

// connect returns when the plugin has been synchronized.
func (n *node) connect(index string, p *plugin) *plugin {
	n.t.Helper()
	n.dial(index, p)
	select {
	case <-p.ready:
	case <-time.After(engine.Patience(20 * time.Second)):
		n.t.Fatalf("plugin %s was not synchronized", index)
	}
	return p
}

func (n *node) dial(index string, p *plugin) {
	n.t.Helper()
	p.t, p.closed, p.ready = n.t, make(chan struct{}), make(chan struct{})
	n.eventually(20*time.Second, func() (err error) { // the socket is made a moment after the CRI's
		p.conn, err = net.Dial("unix", n.nriSocket())
		return err
	})
	closed := sync.OnceFunc(func() { close(p.closed) })
	var err error
	p.stub, err = stub.New(p, stub.WithPluginName("probe"), stub.WithPluginIdx(index), stub.WithConnection(p.conn),
		stub.WithOnClose(closed), stub.WithLogger(silent{}))
	must(n.t, err)
	go p.stub.Start(context.Background())
	n.t.Cleanup(p.stub.Stop)
}

// A plugin hears of every step, in order; what it wants of a container is what the container gets, and what the kubelet is told.
func TestPluginAdjustsAContainer(t *testing.T) {
	n := nriNode(t, "")
	shared := t.TempDir()
	must(t, os.WriteFile(filepath.Join(shared, "note"), []byte("from the node"), 0o644))
	p := n.connect("10", &plugin{onCreate: func(_ context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		if pod.Name != "p" || len(pod.Ips) != 1 || pod.Linux.CgroupsPath == "" || len(c.Args) == 0 || c.Linux.CgroupsPath == "" || c.Image.ConfigDigest == "" {
			t.Errorf("the plugin sees pod %v and container %v", pod, c)
		}
		a := &api.ContainerAdjustment{}
		a.AddEnv("PLUGIN", "was here")
		a.RemoveEnv("UNWANTED")
		a.AddMount(&api.Mount{Destination: "/plugin", Type: "bind", Source: shared, Options: []string{"rbind", "ro"}})
		a.AddAnnotation("example.org/plugin", "yes")
		a.AddRlimit("RLIMIT_NOFILE", 4096, 1024)
		a.SetLinuxCPUShares(333)
		a.SetLinuxMemoryLimit(96 << 20)
		a.SetLinuxCPUSetCPUs("0")
		return a, nil, nil
	}})
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	c := engine.Sleeper("main", busybox)
	c.Envs = []*cri.KeyValue{{Key: "UNWANTED", Value: []byte("x")}}
	id := n.run(pod, cfg, c)
	if got := n.output(id, "sh", "-c", "echo $PLUGIN${UNWANTED-,}; cat /plugin/note; touch /plugin/x 2>&1 | grep -o Read-only; ulimit -n"); got != "was here,\nfrom the nodeRead-only\n1024\n" {
		t.Errorf("the container sees %q", got)
	}
	for file, want := range map[[2]string]string{
		{"memory/memory.limit_in_bytes", "memory.max"}: fmt.Sprint(96 << 20), {"cpuset/cpuset.cpus", "cpuset.cpus"}: "0",
	} {
		if got := n.limit(id, file[0], file[1]); got != want {
			t.Errorf("%s is %s, want %s", file[1], got, want)
		}
	}
	if r := n.status(id).GetResources().GetLinux(); r.GetCpuShares() != 333 || r.GetMemoryLimitInBytes() != 96<<20 || r.GetCpusetCpus() != "0" {
		t.Errorf("the status says %v", r)
	}
	_, err := n.Runtime.UpdatePodSandboxResources(n.ctx(), &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &cri.LinuxContainerResources{CpuShares: 99}})
	must(t, err)
	must(t, n.update(id, &cri.LinuxContainerResources{CpuShares: 222}))
	n.stop(id, 2)
	n.remove(id)
	n.stopPod(pod)
	n.removePod(pod)
	want := []string{
		"RunPodSandbox p", "CreateContainer main", "PostCreateContainer main", "StartContainer main", "PostStartContainer main",
		"UpdatePodSandbox p 99", "PostUpdatePodSandbox p 99", "UpdateContainer main", "PostUpdateContainer main", "StopContainer main",
		"RemoveContainer main", "StopPodSandbox p", "RemovePodSandbox p",
	}
	if got := p.all(); !slices.Equal(got, want) {
		t.Errorf("the plugin heard %q\nwant %q", got, want)
	}
	if c := p.container("PostCreateContainer main"); !slices.Contains(c.Env, "PLUGIN=was here") || c.Annotations["example.org/plugin"] != "yes" {
		t.Errorf("after its making the container is shown as %v", c)
	}
	if c := p.container("PostUpdateContainer main"); c.State != api.ContainerState_CONTAINER_RUNNING || c.Pid == 0 {
		t.Errorf("after the update it is %s with pid %d", c.State, c.Pid)
	}
}

// Plugins may change what an update asks for, and other containers, when they are asked or of their own accord.
func TestPluginUpdatesContainers(t *testing.T) {
	n := nriNode(t, "")
	var first string
	shares := func(id string, value uint64) *api.ContainerUpdate {
		u := &api.ContainerUpdate{}
		u.SetContainerId(id)
		u.SetLinuxCPUShares(value)
		return u
	}
	p := n.connect("10", &plugin{
		onCreate: func(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			if c.Name != "second" {
				return nil, nil, nil
			}
			return nil, []*api.ContainerUpdate{shares(first, 111)}, nil
		},
		onUpdate: func(c *api.Container, r *api.LinuxResources) []*api.ContainerUpdate {
			if r.GetCpu().GetShares().GetValue() != 500 {
				t.Errorf("the plugin is asked for %v", r)
			}
			return []*api.ContainerUpdate{shares(c.Id, 555)}
		},
	})
	check := func(id string, want int64) {
		t.Helper()
		if got := n.status(id).GetResources().GetLinux().GetCpuShares(); got != want {
			t.Errorf("shares are %d, want %d", got, want)
		}
	}
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	first = n.run(pod, cfg, engine.Sleeper("first", busybox))
	second := n.run(pod, cfg, engine.Sleeper("second", busybox))
	check(first, 111)
	must(t, n.update(second, &cri.LinuxContainerResources{CpuShares: 500}))
	check(second, 555)
	failed, err := p.stub.UpdateContainers([]*api.ContainerUpdate{shares(first, 777), shares("nobody", 1)})
	if err != nil || len(failed) != 1 || failed[0].ContainerId != "nobody" {
		t.Errorf("unsolicited updates: failed are %v, %v", failed, err)
	}
	check(first, 777)
	beyond := &api.ContainerUpdate{}
	beyond.SetContainerId(first)
	beyond.SetLinuxPidLimits(7)
	if _, err := p.stub.UpdateContainers([]*api.ContainerUpdate{beyond}); err == nil || !strings.Contains(err.Error(), "pids") {
		t.Errorf("an update that cannot be made: %v", err)
	}
}

// What a plugin refuses, or cannot have, is refused with its name, and leaves nothing. The next attempt is asked about anew.
func TestPluginRefuses(t *testing.T) {
	n := nriNode(t, "")
	var wish func(a *api.ContainerAdjustment) error
	var noPod, noStart error
	p := n.connect("42", &plugin{
		onRunPod: func(context.Context, *api.PodSandbox) error { return noPod },
		onStart:  func(*api.Container) error { return noStart },
		onCreate: func(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			a := &api.ContainerAdjustment{}
			return a, nil, wish(a)
		},
	})
	noPod = errors.New("no pods today")
	cfg := n.Pod("p")
	_, err := n.Runtime.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: cfg})
	refused(t, err, anyCode, "42-probe", "no pods today")
	n.noLeftovers()
	noPod = nil
	pod := n.runPod(cfg)
	for name, test := range map[string]struct {
		wish  func(a *api.ContainerAdjustment) error
		words []string
	}{
		"refusal": {func(*api.ContainerAdjustment) error { return errors.New("not this one") }, []string{"42-probe", "not this one"}},
		"cgroup":  {func(a *api.ContainerAdjustment) error { a.SetLinuxCgroupsPath("/elsewhere"); return nil }, []string{"plugins", "/elsewhere"}},
		"mount": {func(a *api.ContainerAdjustment) error {
			a.AddMount(&api.Mount{Destination: "/x", Type: "bind", Source: "/does/not/exist", Options: []string{"bind"}})
			return nil
		}, []string{"plugins", "/does/not/exist"}},
		"root": {func(a *api.ContainerAdjustment) error {
			a.AddMount(&api.Mount{Destination: "/", Type: "bind", Source: "/", Options: []string{"bind"}})
			return nil
		}, []string{"plugins", "mounts"}},
		"rlimit":  {func(a *api.ContainerAdjustment) error { a.AddRlimit("RLIMIT_NOFILE", 1, 2); return nil }, []string{"plugins", "RLIMIT_NOFILE"}},
		"blockio": {func(a *api.ContainerAdjustment) error { a.SetLinuxBlockIOClass("gold"); return nil }, []string{"plugins", "gold"}},
		"cdi": {func(a *api.ContainerAdjustment) error {
			a.AddCDIDevice(&api.CDIDevice{Name: "vendor.test/none=x"})
			return nil
		}, []string{"plugins", "vendor.test/none=x"}},
		"namespace": {func(a *api.ContainerAdjustment) error {
			a.RemoveNamespace(&api.LinuxNamespace{Type: "mount"})
			return nil
		}, []string{"plugins", "namespace"}},
	} {
		wish = test.wish
		_, err := n.Runtime.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: engine.Sleeper("main", busybox), SandboxConfig: cfg})
		if err == nil {
			t.Errorf("%s: the container was made", name)
			continue
		}
		refused(t, err, anyCode, test.words...)
	}
	if got := p.all(); !slices.Contains(got, "RemoveContainer main") || slices.Contains(got, "StartContainer main") {
		t.Errorf("of containers that were not made the plugin heard %q", got)
	}
	wish = func(*api.ContainerAdjustment) error { return nil }
	noStart = errors.New("not now")
	id := n.create(pod, cfg, engine.Sleeper("main", busybox))
	_, err = n.Runtime.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id})
	refused(t, err, anyCode, "42-probe", "not now")
	if s := n.status(id); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 128 || !strings.Contains(s.Message, "not now") {
		t.Errorf("after a refused start the container is %s, %d, %s", s.State, s.ExitCode, s.Message)
	}
}

// A container that ends by itself is told, too.
func TestPluginHearsOfAnEnd(t *testing.T) {
	n := nriNode(t, "")
	p := n.connect("10", &plugin{})
	cfg := n.Pod("p")
	pod := n.runPod(cfg)
	n.run(pod, cfg, engine.Container("brief", busybox, "sh", "-c", "exit 3"))
	n.eventually(20*time.Second, func() error {
		if got := p.all(); got[len(got)-1] != "StopContainer brief" {
			return fmt.Errorf("the last that the plugin heard is %q", got[len(got)-1])
		}
		return nil
	})
	if c := p.container("StopContainer brief"); c.State != api.ContainerState_CONTAINER_STOPPED || c.ExitCode != 3 || c.FinishedAt == 0 {
		t.Errorf("the plugin saw state %s, code %d, finished at %d", c.State, c.ExitCode, c.FinishedAt)
	}
}

// A plugin that dies or hangs while it is asked costs one request its time. It is disconnected, and pods go on without it.
func TestPluginThatDiesOrHangs(t *testing.T) {
	for name, fail := range map[string]func(context.Context, *plugin){
		"dies":  func(_ context.Context, p *plugin) { p.drop() },
		"hangs": func(_ context.Context, p *plugin) { <-p.closed },
	} {
		t.Run(name, func(t *testing.T) {
			n := nriNode(t, "nri.request_timeout = \"500ms\"\n")
			good := n.connect("20", &plugin{})
			bad := &plugin{}
			bad.onCreate = func(ctx context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
				fail(ctx, bad)
				return nil, nil, nil
			}
			n.connect("10", bad)
			cfg := n.Pod("p")
			pod := n.runPod(cfg)
			id := n.run(pod, cfg, engine.Sleeper("main", busybox))
			n.output(id, "true")
			select {
			case <-bad.closed:
			case <-time.After(engine.Patience(20 * time.Second)):
				t.Error("the bad plugin is still connected")
			}
			n.run(pod, cfg, engine.Sleeper("next", busybox))
			if got := bad.all(); slices.Contains(got, "CreateContainer next") {
				t.Errorf("the bad plugin was asked again: %q", got)
			}
			if got := good.all(); !slices.Contains(got, "CreateContainer main") || !slices.Contains(got, "PostStartContainer next") {
				t.Errorf("the good plugin heard %q", got)
			}
		})
	}
}

// A plugin that takes its time to be synchronized misses nothing and delays nobody beyond its limit.
func TestPluginThatHangsWhileItComes(t *testing.T) {
	n := nriNode(t, "nri.request_timeout = \"700ms\"\nnri.registration_timeout = \"500ms\"\n")
	n.up("before")
	release, inside := make(chan struct{}), make(chan struct{})
	slow := &plugin{onSync: func(context.Context) { close(inside); <-release }}
	n.dial("10", slow)
	<-inside
	mute, err := net.Dial("unix", n.nriSocket()) // and one that never says who it is
	must(t, err)
	defer mute.Close()
	n.up("meanwhile")
	close(release)
	late := n.connect("11", &plugin{})
	late.mu.Lock()
	defer late.mu.Unlock()
	slices.Sort(late.synced)
	if want := []string{"before", "main", "main", "meanwhile"}; !slices.Equal(late.synced, want) {
		t.Errorf("the next plugin is synchronized with %q, want %q", late.synced, want)
	}
}

// After a crash of the daemon plugins connect again and are told what lives.
func TestPluginsComeBack(t *testing.T) {
	n := nriNode(t, "")
	first := n.connect("10", &plugin{})
	pod, id := n.up("p")
	must(t, n.Restart())
	<-first.closed
	again := n.connect("10", &plugin{})
	if want := []string{"p", "main"}; !slices.Equal(again.synced, want) {
		t.Errorf("after the restart the plugin is told of %q, want %q", again.synced, want)
	}
	n.stop(id, 0)
	n.removePod(pod)
	n.eventually(20*time.Second, func() error {
		if got, want := again.all(), []string{"StopContainer main", "RemoveContainer main", "StopPodSandbox p", "RemovePodSandbox p"}; !slices.Equal(got, want) {
			return fmt.Errorf("the plugin heard %q, want %q", got, want)
		}
		return nil
	})
}

// A program in the plugin directory is started, configured, asked, and gone with the daemon.
func TestPluginDirectory(t *testing.T) {
	n, heard := pluginDirNode(t)
	n.up("p")
	data, err := os.ReadFile(heard)
	must(t, err)
	if want := "RunPodSandbox p\nCreateContainer main\n"; string(data) != want {
		t.Errorf("the program heard %q, want %q", data, want)
	}
}

func pluginDirNode(t *testing.T) (n *node, heard string) {
	t.Helper()
	n = prepareNode(t, "builtin")
	dir, heard := filepath.Join(n.Base, "plugins"), filepath.Join(n.Base, "heard")
	must(t, os.MkdirAll(dir, 0o755))
	self, err := os.Executable()
	must(t, err)
	must(t, os.Symlink(self, filepath.Join(dir, "10-launched")))
	must(t, os.WriteFile(filepath.Join(dir, "launched.conf"), []byte(heard), 0o644))
	n.Config = fmt.Sprintf("nri.socket = %q\nnri.plugin_dir = %q\nnri.config_dir = %q\n", n.nriSocket(), dir, dir)
	must(t, n.Start())
	n.pull(busybox)
	return n, heard
}

// launched is a plugin that the daemon starts: this program itself. Its configuration is the file to write to.
type launched struct{ file string }

// runLaunched is the whole program, when it was started as a plugin.
func runLaunched() error {
	s, err := stub.New(&launched{})
	if err != nil {
		return err
	}
	return s.Run(context.Background())
}

func (l *launched) Configure(_ context.Context, config, _, _ string) (stub.EventMask, error) {
	l.file = config
	return api.ParseEventMask("RunPodSandbox", "CreateContainer")
}

func (l *launched) hear(what, name string) error {
	f, err := os.OpenFile(l.file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, what, name)
	return err
}

func (l *launched) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return l.hear("RunPodSandbox", pod.Name)
}

func (l *launched) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	return nil, nil, l.hear("CreateContainer", c.Name)
}

// Killing the daemon around every call of plugins, and letting each call fail, leaves what the other kill points leave.
func TestKillPointsOfPlugins(t *testing.T) {
	for _, r := range requests {
		if r.name == "PullImage" || r.name == "StopContainer" { // plugins hear of a container's end when it has come
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			w := newWorldOn(t, func() *node { n, _ := pluginDirNode(t); return n }())
			effects := slices.DeleteFunc(w.learn(r), func(name string) bool { return !strings.HasPrefix(name, "plugins.") })
			if len(effects) == 0 {
				t.Fatal("plugins are not asked")
			}
			w.attackEach(r, effects, []string{"kill-before", "kill-after"})
			w.failing = true
			w.attackEach(r, effects, []string{"fail-before", "fail-after"})
		})
	}
}
