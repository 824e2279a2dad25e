package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/internal/systemd"
	"github.com/evenkeel/evenkeel/sandbox"
	"github.com/evenkeel/evenkeel/shim"
)

// configFile is read when it exists; files in conf.d beside it follow in the order of their names. Neither is needed.
const configFile = "/etc/evenkeel/config.toml"

// config is /etc/evenkeel/config.toml. Keys are added, never renamed.
type config struct {
	Version  int    `toml:"version" comment:"of this file's format"`
	Root     string `toml:"root" comment:"what survives a reboot: images, records, writable layers"`
	State    string `toml:"state" comment:"what does not: sockets, namespaces, mounts; best on tmpfs"`
	Listen   string `toml:"listen" comment:"the socket of the CRI"`
	LogLevel string `toml:"log_level" comment:"debug, info, warn or error"`

	Network networkConfig            `toml:"network"`
	Images  imagesConfig             `toml:"images"`
	Cgroup  cgroupConfig             `toml:"cgroup"`
	Logs    logsConfig               `toml:"logs"`
	Stream  streamConfig             `toml:"streaming"`
	Metrics metricsConfig            `toml:"metrics"`
	NRI     nriConfig                `toml:"nri"`
	Tracing tracingConfig            `toml:"tracing"`
	Runtime string                   `toml:"default_runtime" comment:"the handler of pods that name none"`
	Shim    string                   `toml:"shim" comment:"the shim program; empty: evenkeel-shim beside this program, else in PATH"`
	Handler map[string]runtimeConfig `toml:"runtimes"`
}

type networkConfig struct {
	Mode    string        `toml:"mode" comment:"auto (CNI, waits for a conflist), cni or builtin"`
	ConfDir string        `toml:"cni_conf_dir" comment:"where network definitions are, the first by name counts"`
	BinDirs []string      `toml:"cni_bin_dirs" comment:"where the plugins are that they name"`
	CNI     cniConfig     `toml:"cni"`
	Builtin builtinConfig `toml:"builtin"`
}

type cniConfig struct {
	Timeout string `toml:"timeout" comment:"of one call of one plugin"`
	GC      string `toml:"gc" comment:"when the plugins free what belongs to no pod: at start and then every so often, such as 1h; off where others (another runtime, podman) use the same CNI network, since theirs would go too"`
}

// parse returns the limit of a plugin's call and how often to collect, where 0 is never.
func (c cniConfig) parse() (timeout, gc time.Duration, err error) {
	timeout, err = time.ParseDuration(c.Timeout)
	if err != nil || timeout < time.Second {
		return 0, 0, fmt.Errorf("network.cni.timeout = %q: choose a time of at least a second, such as 1m", c.Timeout)
	}
	if c.GC == "off" {
		return timeout, 0, nil
	}
	gc, err = time.ParseDuration(c.GC)
	if err != nil || gc < time.Second {
		return 0, 0, fmt.Errorf("network.cni.gc = %q: choose off or a time of at least a second, such as 1h", c.GC)
	}
	return timeout, gc, nil
}

type builtinConfig struct {
	Bridge  string         `toml:"bridge" comment:"empty: ek0, or a name of its own for an engine with another state directory"`
	Subnets []netip.Prefix `toml:"subnets" comment:"the pod range, at most one IPv4 and one IPv6 prefix, the primary one first; empty: what the CRI client tells (UpdateRuntimeConfig), and 10.199.0.0/16 until it does"`
	MTU     int            `toml:"mtu" comment:"0: that of the interface with the default route"`
}

type imagesConfig struct {
	HostsDir  string   `toml:"hosts_dir" comment:"certs.d layout: <registry>/hosts.toml"`
	AuthFiles []string `toml:"auth_files" comment:"config.json files with registry credentials, the first that knows a registry counts"`
	Pinned    []string `toml:"pinned" comment:"references that garbage collection must keep"`
	Preload   string   `toml:"preload_dir" comment:"image archives in this directory are imported at start; empty: preload below root"`
	Share     []string `toml:"share_credentials" comment:"hosts of mirrors that get the credentials of a pull, which else only the registry in the image's name gets"`
	MaxBytes  int64    `toml:"max_layer_bytes" comment:"a layer that unpacks to more is refused; 0: the default"`
	MaxFiles  int64    `toml:"max_layer_entries" comment:"a layer with more entries is refused; 0: the default"`
	MaxWhole  int64    `toml:"max_archive_bytes" comment:"an archive to import or preload whose files have more, inflated, is refused; 0: the default"`
	Parallel  int      `toml:"parallel_layers" comment:"how many layers are fetched and unpacked at once; 0: 4"`
	Pause     string   `toml:"pause_image" comment:"named to kubeadm, never pulled and never run"`
}

type cgroupConfig struct {
	Driver string `toml:"driver" comment:"who makes the cgroups of containers: systemd, cgroupfs, or auto (systemd where it is the init); the kubelet asks and does the same"`
	Parent string `toml:"parent" comment:"for pods that name none; empty: /evenkeel, or evenkeel.slice under systemd"`
}

type logsConfig struct {
	Policy string `toml:"policy" comment:"what a container does whose log is not written fast enough: block (it waits) or drop (the rest is dropped and counted); pods may say otherwise"`
	Rate   string `toml:"rate" comment:"bytes of log per second and container, such as 1Mi; 0: any"`
	Max    string `toml:"max" comment:"size of one log file, what is more is dropped until it is rotated; 0: any"`
}

type streamConfig struct {
	Address string `toml:"address" comment:"where exec, attach and port-forward are served; port 0 takes a free one"`
}

type metricsConfig struct {
	Address string `toml:"address" comment:"where Prometheus finds the engine's own metrics: 127.0.0.1:9476 or unix:///path; empty: nowhere"`
}

type tracingConfig struct {
	Endpoint string `toml:"endpoint" comment:"collector of OpenTelemetry traces over OTLP/gRPC: 127.0.0.1:4317 or https://host:4317; empty: nothing is traced"`
	Sampling int    `toml:"sampling_per_million" comment:"how many of a million requests are traced that come without a trace; of others, the client decides"`
}

type nriConfig struct {
	Socket          string `toml:"socket" comment:"where plugins of the Node Resource Interface connect, usually /var/run/nri/nri.sock; empty: there are no plugins"`
	PluginDir       string `toml:"plugin_dir" comment:"programs in it are started as plugins, usually /opt/nri/plugins; empty: none"`
	ConfigDir       string `toml:"config_dir" comment:"configuration of those programs: <index>-<name>.conf or <name>.conf"`
	RegisterTimeout period `toml:"registration_timeout" comment:"how long a plugin may take to introduce itself"`
	RequestTimeout  period `toml:"request_timeout" comment:"how long a plugin may take to answer; one that does not is disconnected, and all pods wait so long"`
}

// period is written as Go writes it: 2s, 500ms.
type period time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *period) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = period(parsed)
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (d period) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

type runtimeConfig struct {
	Path     string `toml:"path" comment:"a program with runc's command line; empty: the handler's name beside this program, else in PATH"`
	BaseSpec string `toml:"base_spec" comment:"a runtime-spec document; its process.rlimits are those of every container, and nothing else of it counts"`
	Create   period `toml:"create_timeout" comment:"how long it may take to make a container, such as 1m; 0: a minute; half of the kubelet's runtimeRequestTimeout leaves time to undo it"`
}

func defaultConfig() config {
	return config{
		Version: 1, Root: "/var/lib/evenkeel", State: "/run/evenkeel", Listen: "unix:///run/evenkeel/evenkeel.sock", LogLevel: "info",
		Network: networkConfig{
			Mode: "auto", ConfDir: "/etc/cni/net.d", BinDirs: []string{"/opt/cni/bin"}, CNI: cniConfig{Timeout: "1m", GC: "off"},
			Builtin: builtinConfig{Subnets: []netip.Prefix{}},
		},
		Images: imagesConfig{
			HostsDir: "/etc/containerd/certs.d", AuthFiles: []string{"/var/lib/kubelet/config.json", "/root/.docker/config.json"},
			MaxBytes: image.DefaultLimits.Bytes, MaxFiles: image.DefaultLimits.Entries, MaxWhole: image.DefaultArchiveBytes,
			Parallel: 4, Pause: "registry.k8s.io/pause:3.10",
		},
		Cgroup:  cgroupConfig{Driver: "auto"},
		Logs:    logsConfig{Policy: "block", Rate: "0", Max: "0"},
		Stream:  streamConfig{Address: "127.0.0.1:0"},
		NRI:     nriConfig{ConfigDir: "/etc/nri/conf.d", RegisterTimeout: period(5 * time.Second), RequestTimeout: period(2 * time.Second)},
		Runtime: "runc", Handler: map[string]runtimeConfig{"runc": {Create: period(time.Minute)}},
	}
}

// loadConfig reads path and its conf.d over the defaults. An explicit path must exist, the default one need not.
func loadConfig(path string) (config, origins, error) {
	c, from := defaultConfig(), origins{}
	main := path
	if main == "" {
		main = configFile
	}
	if err := c.read(main, from); err != nil && (path != "" || !errors.Is(err, fs.ErrNotExist)) {
		return c, from, err
	}
	extra, err := filepath.Glob(filepath.Join(filepath.Dir(main), "conf.d", "*.toml"))
	if err != nil {
		return c, from, err
	}
	slices.Sort(extra)
	for _, file := range extra {
		if err := c.read(file, from); err != nil {
			return c, from, err
		}
	}
	return c, from, c.check()
}

func (c *config) read(path string, from origins) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("cannot read the configuration: %w", err)
	}
	err = toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(c)
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		return unknownKeys(path, unknown)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	var tree map[string]any
	if err := toml.Unmarshal(data, &tree); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := otherSpellings(path, "", tree, reflect.TypeFor[config]()); err != nil {
		return err
	}
	from.note(path, "", tree)
	return nil
}

// otherSpellings refuses what go-toml takes for a known key, since it reads Root and ROOT as root: a file could set one key twice,
// and no tool would find where its value comes from.
func otherSpellings(path, prefix string, tree map[string]any, t reflect.Type) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		key, inner := strings.TrimPrefix(prefix+"."+keyPart(name), "."), t
		if t.Kind() == reflect.Map {
			inner = t.Elem()
		} else {
			field := fieldOf(t, name)
			if known := field.Tag.Get("toml"); known != name {
				errs = append(errs, fmt.Errorf("%s: unknown key %q; the nearest known key is %q", path, key, strings.TrimPrefix(prefix+"."+known, ".")))
				continue
			}
			inner = field.Type
		}
		if below, ok := tree[name].(map[string]any); ok {
			errs = append(errs, otherSpellings(path, key, below, inner))
		}
	}
	return errors.Join(errs...)
}

// fieldOf finds the field that go-toml takes for the key.
func fieldOf(t reflect.Type, name string) (f reflect.StructField) {
	for i := range t.NumField() {
		if f = t.Field(i); strings.EqualFold(f.Tag.Get("toml"), name) {
			break
		}
	}
	return f
}

func unknownKeys(path string, unknown *toml.StrictMissingError) error {
	var errs []error
	known := keysOf("", reflect.TypeFor[config]())
	for _, e := range unknown.Errors {
		key := strings.Join(e.Key(), ".")
		row, _ := e.Position()
		errs = append(errs, fmt.Errorf("%s:%d: unknown key %q; the nearest known key is %q", path, row, key, nearest(key, known)))
	}
	return errors.Join(errs...)
}

// keysOf lists the dotted keys of a configuration type; a map's keys appear as NAME.
func keysOf(prefix string, t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		f := t.Field(i)
		key := strings.TrimPrefix(prefix+"."+f.Tag.Get("toml"), ".")
		switch {
		case f.Type.Kind() == reflect.Struct:
			keys = append(keys, keysOf(key, f.Type)...)
		case f.Type.Kind() == reflect.Map:
			keys = append(keys, keysOf(key+".NAME", f.Type.Elem())...)
		default:
			keys = append(keys, key)
		}
	}
	return keys
}

func nearest(key string, known []string) string {
	return slices.MinFunc(known, func(a, b string) int { return distance(key, a) - distance(key, b) })
}

// distance is Levenshtein's: how many letters must change to turn a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// scopes reports whether the driver is systemd.
func (c cgroupConfig) scopes() bool {
	return c.Driver == "systemd" || c.Driver == "auto" && systemd.Booted()
}

func (c cgroupConfig) driver() cri.CgroupDriver {
	if c.scopes() {
		return cri.CgroupDriver_SYSTEMD
	}
	return cri.CgroupDriver_CGROUPFS
}

func (c cgroupConfig) check() error {
	switch {
	case !slices.Contains([]string{"auto", "systemd", "cgroupfs"}, c.Driver):
		return fmt.Errorf("cgroup.driver = %q: choose auto, systemd or cgroupfs", c.Driver)
	case c.Driver == "systemd" && !systemd.Booted():
		return errors.New("cgroup.driver = \"systemd\": systemd is not the init of this machine (/run/systemd/system is missing); choose auto or cgroupfs")
	case c.Parent == "" || !c.scopes():
		return nil
	}
	if _, err := systemd.ParentPath(c.Parent); err != nil {
		return fmt.Errorf("cgroup.parent under the systemd driver: %w", err)
	}
	return nil
}

func parseLevel(text string) (l slog.Level, err error) {
	if err := l.UnmarshalText([]byte(text)); err != nil {
		return l, fmt.Errorf("log_level = %q: choose debug, info, warn or error", text)
	}
	return l, nil
}

func (l logsConfig) parse() (shim.LogPolicy, error) {
	return sandbox.ParseLogPolicy(shim.LogPolicy{}, l.Policy, l.Rate, l.Max)
}

// check finds what the first pod would else fail of.
func (b builtinConfig) check() error {
	families := map[bool]int{}
	for _, p := range b.Subnets {
		families[p.Addr().Is4()]++
	}
	switch {
	case families[true] > 1 || families[false] > 1:
		return fmt.Errorf("network.builtin.subnets = %v: at most one IPv4 and one IPv6 prefix are possible", b.Subnets)
	case len(b.Bridge) > 15:
		return fmt.Errorf("network.builtin.bridge = %q: a device's name has at most 15 bytes", b.Bridge)
	}
	return notNegative("network.builtin.mtu", int64(b.MTU))
}

func notNegative(key string, n int64) error {
	if n < 0 {
		return fmt.Errorf("%s = %d: must not be negative", key, n)
	}
	return nil
}

func checkTCP(key, address string) error {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fmt.Errorf("%s = %q: host:port is wanted: %w", key, address, err)
	}
	return nil
}

// check finds values that cannot work before anything is started with them.
func (c *config) check() error {
	switch {
	case c.Version != 1:
		return fmt.Errorf("version = %d in the configuration: this program reads version 1", c.Version)
	case !filepath.IsAbs(c.Root) || !filepath.IsAbs(c.State):
		return fmt.Errorf("root %q and state %q must be absolute paths", c.Root, c.State)
	case !strings.HasPrefix(c.Listen, "unix:///"):
		return fmt.Errorf("listen = %q: only unix:///path is possible", c.Listen)
	case !slices.Contains([]string{"auto", "cni", "builtin"}, c.Network.Mode):
		return fmt.Errorf("network.mode = %q: choose auto, cni or builtin", c.Network.Mode)
	}
	if _, err := parseLevel(c.LogLevel); err != nil {
		return err
	}
	if _, _, err := c.Network.CNI.parse(); err != nil {
		return err
	}
	if err := c.Network.Builtin.check(); err != nil {
		return err
	}
	if err := errors.Join(
		notNegative("images.max_layer_bytes", c.Images.MaxBytes), notNegative("images.max_layer_entries", c.Images.MaxFiles),
		notNegative("images.max_archive_bytes", c.Images.MaxWhole), notNegative("images.parallel_layers", int64(c.Images.Parallel)),
	); err != nil {
		return err
	}
	if err := checkTCP("streaming.address", c.Stream.Address); err != nil {
		return err
	}
	if a := c.Metrics.Address; strings.HasPrefix(a, "unix://") && !strings.HasPrefix(a, "unix:///") {
		return fmt.Errorf("metrics.address = %q: the path of the socket must be absolute", a)
	} else if a != "" && !strings.HasPrefix(a, "unix://") {
		if err := checkTCP("metrics.address", a); err != nil {
			return err
		}
	}
	if err := c.Cgroup.check(); err != nil {
		return err
	}
	if _, err := c.Logs.parse(); err != nil {
		return fmt.Errorf("logs: %w", err)
	}
	if n := c.Tracing.Sampling; n < 0 || n > 1_000_000 {
		return fmt.Errorf("tracing.sampling_per_million = %d: choose 0 to 1000000", n)
	}
	if err := c.NRI.check(); err != nil {
		return err
	}
	for name, r := range c.Handler {
		if r.Create < 0 {
			return fmt.Errorf("runtimes.%s.create_timeout = %s: must not be negative", name, time.Duration(r.Create))
		}
	}
	if _, ok := c.Handler[c.Runtime]; !ok {
		return fmt.Errorf("default_runtime = %q is not among [runtimes.*]", c.Runtime)
	}
	return nil
}
