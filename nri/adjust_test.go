package nri

import (
	"context"
	"encoding/json"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/adaptation/builtin"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/sandbox"
)

func decided() *specs.Spec {
	limit, score := int64(64<<20), 100
	return &specs.Spec{
		Process: &specs.Process{Args: []string{"sh"}, Env: []string{"PATH=/bin", "A=1", "B=2"}, OOMScoreAdj: &score},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/data", Type: "bind", Source: "/srv/data", Options: []string{"rbind", "ro"}},
		},
		Annotations: map[string]string{"kept": "yes", "unwanted": "yes"},
		Linux: &specs.Linux{
			CgroupsPath: "/pod/c", Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}},
			Devices:    []specs.LinuxDevice{{Path: "/dev/old", Type: "c", Major: 1, Minor: 3}},
			Namespaces: []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/run/ns"}},
			Sysctl:     map[string]string{"net.ipv4.ip_forward": "1"},
		},
	}
}

// asked puts one builtin plugin's wishes through the library, as those of a connected one go.
func asked(t *testing.T, spec *specs.Spec, wish func(*api.ContainerAdjustment)) (sandbox.Adjustment, error) {
	t.Helper()
	nrilog.Set(logger{slog.New(slog.DiscardHandler)})
	p := &Plugins{started: make(chan struct{}), asked: map[string]bool{}}
	plugin := &builtin.BuiltinPlugin{Base: "probe", Index: "10", Handlers: builtin.BuiltinHandlers{
		CreateContainer: func(context.Context, *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
			a := &api.ContainerAdjustment{}
			wish(a)
			return &api.CreateContainerResponse{Adjust: a}, nil
		},
	}}
	sync := func(ctx context.Context, tell adaptation.SyncCB) error { _, err := tell(ctx, nil, nil); return err }
	var err error
	p.nri, err = adaptation.New("test", "1", sync, p.update, adaptation.WithBuiltinPlugins(plugin), adaptation.WithPluginPath(""),
		adaptation.WithDisabledExternalConnections(), adaptation.WithMetrics(&p.blame))
	if err != nil {
		t.Fatal(err)
	}
	p.Start()
	t.Cleanup(p.Stop)
	return p.Create(t.Context(), sandbox.PodView{Config: &cri.PodSandboxConfig{}}, sandbox.ContainerView{ID: "c", Config: &cri.ContainerConfig{}, Spec: spec})
}

func TestAdjust(t *testing.T) {
	for name, test := range map[string]struct {
		wish func(*api.ContainerAdjustment)
		want func(*specs.Spec)
	}{
		"nothing": {func(*api.ContainerAdjustment) {}, func(*specs.Spec) {}},
		"env": {
			func(a *api.ContainerAdjustment) { a.AddEnv("B", "3"); a.AddEnv("C", "4"); a.RemoveEnv("A") },
			func(s *specs.Spec) { s.Process.Env = []string{"PATH=/bin", "B=3", "C=4"} },
		},
		"args": {
			func(a *api.ContainerAdjustment) { a.SetArgs([]string{"true"}) },
			func(s *specs.Spec) { s.Process.Args = []string{"true"} },
		},
		"annotations": {
			func(a *api.ContainerAdjustment) { a.AddAnnotation("new", "1"); a.RemoveAnnotation("unwanted") },
			func(s *specs.Spec) { s.Annotations = map[string]string{"kept": "yes", "new": "1"} },
		},
		"mounts": {
			func(a *api.ContainerAdjustment) {
				a.RemoveMount("/data")
				a.AddMount(&api.Mount{Destination: "/a", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m"}})
			},
			func(s *specs.Spec) {
				s.Mounts = []specs.Mount{{Destination: "/a", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m"}}, s.Mounts[0]}
			},
		},
		"device": {
			func(a *api.ContainerAdjustment) {
				a.RemoveDevice("/dev/old")
				a.AddDevice(&api.LinuxDevice{Path: "/dev/new", Type: "c", Major: 10, Minor: 229})
			},
			func(s *specs.Spec) {
				major, minor := int64(10), int64(229)
				s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/new", Type: "c", Major: 10, Minor: 229}}
				s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rw"}}
			},
		},
		"memory": {
			func(a *api.ContainerAdjustment) {
				a.SetLinuxMemoryLimit(1 << 20)
				a.SetLinuxMemorySwap(2 << 20)
				a.SetLinuxMemoryReservation(3)
			},
			func(s *specs.Spec) {
				limit, swap, reservation := int64(1<<20), int64(2<<20), int64(3)
				s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &swap, Reservation: &reservation}
			},
		},
		"cpu": {
			func(a *api.ContainerAdjustment) {
				a.SetLinuxCPUShares(7)
				a.SetLinuxCPUSetCPUs("0-1")
				a.SetLinuxCPUQuota(9)
				a.SetLinuxCPUPeriod(11)
			},
			func(s *specs.Spec) {
				shares, quota, period := uint64(7), int64(9), uint64(11)
				s.Linux.Resources.CPU = &specs.LinuxCPU{Shares: &shares, Cpus: "0-1", Quota: &quota, Period: &period}
			},
		},
		"more limits": {
			func(a *api.ContainerAdjustment) {
				a.SetLinuxPidLimits(5)
				a.AddLinuxHugepageLimit("2MB", 4)
				a.AddLinuxUnified("memory.high", "1")
				a.AddRlimit("RLIMIT_CORE", 2, 1)
				score := 300
				a.SetLinuxOomScoreAdj(&score)
			},
			func(s *specs.Spec) {
				pids, score := int64(5), 300
				s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
				s.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4}}
				s.Linux.Resources.Unified = map[string]string{"memory.high": "1"}
				s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Hard: 2, Soft: 1}}
				s.Process.OOMScoreAdj = &score
			},
		},
		"hooks": {
			func(a *api.ContainerAdjustment) {
				a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: "/bin/hook"}}, Poststop: []*api.Hook{{Path: "/bin/end"}}})
			},
			func(s *specs.Spec) {
				s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/hook"}}, Poststop: []specs.Hook{{Path: "/bin/end"}}}
			},
		},
		"namespaces and sysctls": {
			func(a *api.ContainerAdjustment) {
				a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "network", Path: "/run/other"})
				a.SetLinuxSysctl(api.MarkForRemoval("net.ipv4.ip_forward"), "")
				a.SetLinuxSysctl("kernel.shmmax", "0")
			},
			func(s *specs.Spec) {
				s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/run/other"}}
				s.Linux.Sysctl = map[string]string{"kernel.shmmax": "0"}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, want := decided(), decided()
			test.want(want)
			if _, err := asked(t, got, test.wish); err != nil {
				t.Fatal(err)
			}
			if shown(got) != shown(want) {
				t.Errorf("got  %s\nwant %s", shown(got), shown(want))
			}
		})
	}
}

func shown(s *specs.Spec) string {
	data, _ := json.Marshal(s)
	return string(data)
}

func TestAdjustSaysMoreThanTheSpec(t *testing.T) {
	wish, err := asked(t, decided(), func(a *api.ContainerAdjustment) {
		a.AddCDIDevice(&api.CDIDevice{Name: "vendor/class=one"})
		a.SetLinuxMemoryLimit(5)
		a.SetLinuxCPUShares(6)
	})
	if err != nil || !slices.Equal(wish.CDI, []string{"vendor/class=one"}) {
		t.Errorf("devices are %q, %v", wish.CDI, err)
	}
	if r := wish.Resources; r.GetMemoryLimitInBytes() != 5 || r.GetMemorySwapLimitInBytes() != 5 || r.GetCpuShares() != 6 {
		t.Errorf("resources are %v", r)
	}
}

func TestAdjustRefuses(t *testing.T) {
	for word, wish := range map[string]func(*api.ContainerAdjustment){
		"gold":   func(a *api.ContainerAdjustment) { a.SetLinuxBlockIOClass("gold") },
		"nosuch": func(a *api.ContainerAdjustment) { a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "nosuch"}) },
		"kernel": func(a *api.ContainerAdjustment) { a.SetLinuxMemoryKernel(1) },
	} {
		if _, err := asked(t, decided(), wish); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v", word, err)
		}
	}
}

// A panic in the library, or over what a plugin said, is an answer like any other.
func TestPanicIsAnError(t *testing.T) {
	_, err := asked(t, decided(), func(*api.ContainerAdjustment) { panic("oops") })
	if err == nil || !strings.Contains(err.Error(), "oops") {
		t.Errorf("a plugin that panics: %v", err)
	}
}

func TestResourcesThereAndBack(t *testing.T) {
	full := &cri.LinuxContainerResources{
		CpuPeriod: 1, CpuQuota: 2, CpuShares: 3, MemoryLimitInBytes: 4, MemorySwapLimitInBytes: 5, CpusetCpus: "6", CpusetMems: "7",
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 8}}, Unified: map[string]string{"memory.high": "9"},
	}
	if got := overlaid(nil, resourcesOf(full)); got.String() != full.String() {
		t.Errorf("got %v, want %v", got, full)
	}
	if err := expressible(resourcesOf(full)); err != nil {
		t.Error(err)
	}
	if got := overlaid(full, &api.LinuxResources{}); got.String() != full.String() {
		t.Errorf("nothing on top of %v is %v", full, got)
	}
}

// Every field of NRI's resources is either carried into an update or refused by name.
func TestEveryFieldOfAnUpdateIsHeeded(t *testing.T) {
	refused := map[string]*api.LinuxResources{
		"memory.reservation":        {Memory: &api.LinuxMemory{Reservation: api.Int64(1)}},
		"memory.kernel":             {Memory: &api.LinuxMemory{Kernel: api.Int64(1)}},
		"memory.kernel_tcp":         {Memory: &api.LinuxMemory{KernelTcp: api.Int64(1)}},
		"memory.swappiness":         {Memory: &api.LinuxMemory{Swappiness: api.UInt64(uint64(1))}},
		"memory.disable_oom_killer": {Memory: &api.LinuxMemory{DisableOomKiller: api.Bool(true)}},
		"memory.use_hierarchy":      {Memory: &api.LinuxMemory{UseHierarchy: api.Bool(true)}},
		"cpu.realtime_runtime":      {Cpu: &api.LinuxCPU{RealtimeRuntime: api.Int64(1)}},
		"cpu.realtime_period":       {Cpu: &api.LinuxCPU{RealtimePeriod: api.UInt64(uint64(1))}},
		"pids":                      {Pids: &api.LinuxPids{Limit: 1}},
		"devices":                   {Devices: []*api.LinuxDeviceCgroup{{}}},
		"blockio_class":             {BlockioClass: api.String("x")},
		"rdt_class":                 {RdtClass: api.String("x")},
	}
	for name, r := range refused {
		if err := expressible(r); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	carried := []string{"memory.limit", "memory.swap", "memory", "cpu.shares", "cpu.quota", "cpu.period", "cpu.cpus", "cpu.mems", "cpu", "hugepage_limits", "unified"}
	for _, part := range []struct {
		prefix string
		of     reflect.Type
	}{{"", reflect.TypeFor[api.LinuxResources]()}, {"memory.", reflect.TypeFor[api.LinuxMemory]()}, {"cpu.", reflect.TypeFor[api.LinuxCPU]()}} {
		for i := range part.of.NumField() {
			_, tag, _ := strings.Cut(part.of.Field(i).Tag.Get("json"), ",")
			name, _, _ := strings.Cut(part.of.Field(i).Tag.Get("json"), ",")
			if tag == "" || name == "" {
				continue
			}
			if name = part.prefix + name; refused[name] == nil && !slices.Contains(carried, name) {
				t.Errorf("%s is a field of the library that nobody heeds", name)
			}
		}
	}
}
