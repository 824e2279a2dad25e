// Package engine runs the real daemon beside whatever else the machine runs: own directories, own socket, own bridge,
// own addresses. Tests and the benchmark drive it as the kubelet would, over CRI, and can kill and restart it.
package engine

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/leftovers"
)

// An Engine is one daemon and everything that belongs to it. Make one with New, then Start it.
type Engine struct {
	Bin     string // directory of the binaries
	Base    string // what survives a reboot: root, config, logs
	State   string // what does not; short, since the path of a unix socket has 108 bytes at most
	Network string // builtin or cni
	Bridge  string // of the builtin network, or of the conflist
	Subnet  string // 10.x.y.0/24
	Subnet6 string // a second range, of IPv6; empty: none
	MTU     int    // of the pods' interfaces; 0: the network decides
	Config  string // more lines of the config file, before its tables
	CNIBin  string // directory of the CNI plugins; empty: Bin
	// Conflist is what stands in the CNI configuration directory: empty for a bridge of our own, "-" for nothing.
	Conflist string
	LogLevel string   // empty: debug
	Env      []string // added to the daemon's environment, such as a fault

	Runtime cri.RuntimeServiceClient
	Images  cri.ImageServiceClient

	// Handover is a listening socket that the daemon gets from its service manager, as systemd does; nil: it makes its own.
	Handover *os.File

	// Ready is how long the last start took, from exec to the first accepted connection.
	Ready time.Duration

	conn  *grpc.ClientConn
	cmd   *exec.Cmd
	ended chan struct{} // closed when the daemon has exited
	unit  string        // of systemd's, without suffix; empty: the daemon is a child of this process
}

var made atomic.Int64

// New prepares directories and configuration. The caller ends with Clean.
func New(bin, network string) (*Engine, error) {
	base, err := os.MkdirTemp("/var/lib", "ektest-")
	if err != nil {
		return nil, err
	}
	state, err := os.MkdirTemp("/run", "ek-")
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(base))
	}
	if err := os.Chmod(state, 0o711); err != nil { // the root of a user namespace must get through, as below /run/evenkeel
		return nil, errors.Join(err, os.RemoveAll(base), os.RemoveAll(state))
	}
	n := int64(os.Getpid())*7 + made.Add(1)
	e := &Engine{
		Bin: bin, Base: base, State: state, Network: network,
		Bridge: fmt.Sprintf("ektest%d", n%100000),
		Subnet: fmt.Sprintf("10.%d.%d.0/24", 180+n/251%16, n%251),
	}
	for _, dir := range []string{e.Root(), e.HostsDir(), e.ConfDir(), e.LogDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, errors.Join(err, e.Clean())
		}
	}
	return e, nil
}

// Binaries is where `make build` puts what it builds for this machine.
func Binaries() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
	}
	bin := filepath.Join(dir, "bin", "linux-"+runtime.GOARCH)
	for _, name := range []string{"evenkeel", "evenkeel-shim", "runc", "bridge"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return "", fmt.Errorf("%w: run `make build` first", err)
		}
	}
	return bin, nil
}

func (e *Engine) Root() string     { return filepath.Join(e.Base, "root") }
func (e *Engine) HostsDir() string { return filepath.Join(e.Base, "hosts") }
func (e *Engine) ConfDir() string  { return filepath.Join(e.Base, "net.d") }
func (e *Engine) LogDir() string   { return filepath.Join(e.Base, "logs") }
func (e *Engine) LogFile() string  { return filepath.Join(e.Base, "daemon.log") }
func (e *Engine) Socket() string   { return filepath.Join(e.State, "e.sock") }

// PID of the running daemon.
func (e *Engine) PID() int { return e.cmd.Process.Pid }

// Start starts the daemon and returns when it accepts connections, or with its last words when it ended instead.
func (e *Engine) Start() error {
	if err := e.configure(); err != nil {
		return err
	}
	if err := e.spawn(); err != nil {
		return err
	}
	if err := e.await(); err != nil {
		return errors.Join(err, e.Kill())
	}
	return e.connect()
}

func (e *Engine) connect() error {
	conn, err := Dial(e.Socket())
	if err != nil {
		return errors.Join(err, e.Kill())
	}
	e.conn = conn
	e.Runtime, e.Images = cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	return nil
}

// Dial connects to a CRI socket as the kubelet does.
func Dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
}

// args is the command line of the daemon.
func (e *Engine) args() []string {
	return []string{"serve",
		"--config", filepath.Join(e.Base, "config.toml"),
		"--root", e.Root(), "--state", e.State, "--listen", "unix://" + e.Socket(),
		"--network", e.Network, "--cni-conf-dir", e.ConfDir(), "--cni-bin-dir", cmp.Or(e.CNIBin, e.Bin),
		"--registry-hosts-dir", e.HostsDir(), "--log-level", cmp.Or(e.LogLevel, "debug"),
	}
}

func (e *Engine) configure() error {
	config := "version = 1\n" + e.Config + e.patience()
	if e.Network == "builtin" {
		config += fmt.Sprintf("\n[network.builtin]\nbridge = %q\nsubnets = [\"%s\"]\nmtu = %d\n", e.Bridge, strings.Join(e.subnets(), `", "`), e.MTU)
	} else if err := e.WriteConflist(); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(e.Base, "config.toml"), []byte(config), 0o644)
}

// patience lengthens the daemon's own deadlines on a slow machine, where the test has not set them.
func (e *Engine) patience() (config string) {
	if !Slow() {
		return ""
	}
	for table, line := range map[string]string{"network.cni": "timeout", "runtimes.runc": "create_timeout"} {
		if !strings.Contains(e.Config, "["+table+"]") {
			config += fmt.Sprintf("\n[%s]\n%s = %q\n", table, line, Patience(time.Minute))
		}
	}
	return config
}

// WriteConflist puts Conflist where the daemon looks for it.
func (e *Engine) WriteConflist() error {
	if e.Conflist == "-" {
		return nil
	}
	return os.WriteFile(filepath.Join(e.ConfDir(), "10-test.conflist"), []byte(cmp.Or(e.Conflist, e.BridgeConflist())), 0o644)
}

// BridgeConflist is the configuration of a CNI network of the engine's own.
func (e *Engine) BridgeConflist() string {
	routes := `{"dst": "0.0.0.0/0"}`
	if e.Subnet6 != "" {
		routes += `, {"dst": "::/0"}`
	}
	return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": %q, "plugins": [
  {"type": "bridge", "bridge": %q, "isGateway": true, "ipMasq": true, "hairpinMode": true, "mtu": %d,
   "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "%s"}]], "routes": [%s]}},
  {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]}`,
		e.Bridge, e.Bridge, e.MTU, filepath.Join(e.Base, "ipam"), strings.Join(e.subnets(), `"}], [{"subnet": "`), routes)
}

func (e *Engine) subnets() []string {
	if e.Subnet6 == "" {
		return []string{e.Subnet}
	}
	return []string{e.Subnet, e.Subnet6}
}

func (e *Engine) spawn() error {
	log, err := os.OpenFile(e.LogFile(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	// No context: the daemon ends when the test says so.
	e.cmd = exec.Command(filepath.Join(e.Bin, "evenkeel"), e.args()...)
	e.cmd.Env = append(os.Environ(), e.Env...)
	if e.Handover != nil { // a shell knows the pid that the daemon will have
		e.cmd = exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec "$@"`, "sh", filepath.Join(e.Bin, "evenkeel")}, e.args()...)...)
		e.cmd.Env = append(os.Environ(), append(e.Env, "LISTEN_FDS=1")...)
		e.cmd.ExtraFiles = []*os.File{e.Handover}
	}
	e.cmd.Stdout, e.cmd.Stderr = log, log
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a ^C in the terminal is for the test
	if err := e.cmd.Start(); err != nil {
		return err
	}
	cmd, ended := e.cmd, make(chan struct{})
	e.ended = ended
	go func() {
		cmd.Wait()
		close(ended)
	}()
	return nil
}

const startLimit = 20 * time.Second

// await tries the socket until it is answered. The old socket file of a killed daemon refuses connections meanwhile,
// so there is no event to wait for from outside.
func (e *Engine) await() error {
	start := time.Now()
	limit := Patience(startLimit)
	for time.Since(start) < limit {
		if conn, err := net.Dial("unix", e.Socket()); err == nil {
			ours := e.listensAt(conn)
			conn.Close()
			if ours {
				e.Ready = time.Since(start)
				return nil
			}
		}
		select {
		case <-e.ended:
			return fmt.Errorf("the daemon ended: %s\n%s", e.cmd.ProcessState, e.LastWords(20))
		case <-time.After(time.Millisecond):
		}
	}
	return fmt.Errorf("the daemon does not listen after %s\n%s", limit, e.LastWords(20))
}

// listensAt reports whether it is this daemon that took the connection. A daemon that was killed while it started a program has left a
// child for a moment, before its execve, that still holds the old socket.
func (e *Engine) listensAt(conn net.Conn) bool {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil || e.Handover != nil {
		return err == nil
	}
	var listener *syscall.Ucred
	raw.Control(func(fd uintptr) {
		listener, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	return err == nil && int(listener.Pid) == e.PID()
}

// Kill sends SIGKILL and returns when the daemon is gone. Its pods live on.
func (e *Engine) Kill() error { return e.end(syscall.SIGKILL, 5*time.Second) }

// Stop ends the daemon as systemd does. Its pods live on.
func (e *Engine) Stop() error { return e.end(syscall.SIGTERM, 15*time.Second) }

func (e *Engine) end(signal syscall.Signal, limit time.Duration) error {
	if e.conn != nil {
		e.conn.Close()
		e.conn = nil
	}
	if e.unit != "" {
		return e.removeUnit()
	}
	if e.cmd == nil || e.Ended() {
		return nil
	}
	limit = Patience(limit)
	e.cmd.Process.Signal(signal)
	select {
	case <-e.ended:
		return nil
	case <-time.After(limit):
		return fmt.Errorf("the daemon (pid %d) still runs %s after %s", e.PID(), limit, signal)
	}
}

// Ended reports whether the daemon has exited.
func (e *Engine) Ended() bool {
	select {
	case <-e.ended:
		return true
	default:
		return false
	}
}

// Exited is closed when the daemon has exited.
func (e *Engine) Exited() <-chan struct{} { return e.ended }

// AwaitEnd returns when the daemon has exited by itself.
func (e *Engine) AwaitEnd(ctx context.Context) error {
	select {
	case <-e.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the daemon (pid %d) still runs: %w", e.PID(), context.Cause(ctx))
	}
}

// Restart kills the daemon and starts it with another environment.
func (e *Engine) Restart(env ...string) error {
	if err := e.Kill(); err != nil {
		return err
	}
	e.Env = env
	return e.Start()
}

// LastWords is the tail of the daemon's log.
func (e *Engine) LastWords(lines int) string {
	data, _ := os.ReadFile(e.LogFile())
	all := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

// RemoveAll removes every pod, as draining a node does.
func (e *Engine) RemoveAll(ctx context.Context) error {
	pods, err := e.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range pods.Items {
		if _, err := e.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			errs = append(errs, err)
		}
		if _, err := e.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Clean ends the daemon and removes by force all that the engine may have left behind. It is no substitute for the
// search for leftovers, which comes first: it keeps one failed test from spoiling the next.
func (e *Engine) Clean() error {
	errs := []error{e.Kill()}
	for _, pid := range e.Processes() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	RemoveCgroup(e.Instance().CgroupRoot)
	e.stopUnits()
	e.removeTable()
	errs = append(errs, e.unmountAll(), removeLink(e.Bridge))
	errs = append(errs, os.RemoveAll(e.State), os.RemoveAll(e.Base))
	return errors.Join(errs...)
}

// Reboot is what a loss of power does to the engine: processes, mounts, network and state directory are gone, and the
// disk is as it was. The machine goes on, so the records are made to tell of another boot.
func (e *Engine) Reboot() error {
	errs := []error{e.Kill()}
	for _, pid := range e.Processes() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	RemoveCgroup(e.Instance().CgroupRoot)
	e.stopUnits()
	e.removeTable()
	errs = append(errs, e.unmountAll(), removeLink(e.Bridge), os.RemoveAll(e.State), os.Mkdir(e.State, 0o711))
	records, _ := filepath.Glob(filepath.Join(e.Root(), "*", "*", "record"))
	for _, path := range records {
		errs = append(errs, fromAnotherBoot(path))
	}
	return errors.Join(errs...)
}

var bootOf = regexp.MustCompile(`"BootID":"[^"]*"`)

// fromAnotherBoot changes the boot id in a record: a line with the format and the SHA-256 of the rest, then JSON.
func fromAnotherBoot(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, body, _ := bytes.Cut(data, []byte("\n"))
	format, _, _ := bytes.Cut(head, []byte(" "))
	body = bootOf.ReplaceAll(body, []byte(`"BootID":"another"`))
	return os.WriteFile(path, fmt.Appendf(nil, "%s %x\n%s", format, sha256.Sum256(body), body), 0o600)
}

// stopUnits ends what the engine had from systemd, wherever it is.
func (e *Engine) stopUnits() {
	if Systemd() {
		exec.Command("systemctl", "stop", e.Instance().NFTable+"-*.scope").Run()
		exec.Command("systemctl", "reset-failed", e.Instance().NFTable+"-*.scope").Run()
	}
}

// Processes lists those that carry the state directory in their command line, working directory or root: the shims,
// and runc's children on their way.
func (e *Engine) Processes() (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		var pid int
		fmt.Sscanf(filepath.Base(dir), "%d", &pid)
		cwd, _ := os.Readlink(dir + "/cwd")
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		if pid != os.Getpid() && (strings.HasPrefix(cwd, e.State) || bytes.Contains(cmdline, []byte(e.State+"/"))) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (e *Engine) unmountAll() error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	var errs []error
	for i := len(lines) - 1; i >= 0; i-- { // the youngest first: it may stand on an older one
		at := strings.Fields(lines[i])[4]
		if strings.HasPrefix(at, e.State+"/") || strings.HasPrefix(at, e.Base+"/") {
			errs = append(errs, syscall.Unmount(at, syscall.MNT_DETACH))
		}
	}
	return errors.Join(errs...)
}

// Instance is how the daemon names what it makes outside its directories (cmd/evenkeel/instance.go): an engine whose
// state directory is not the usual one adds a hash of its path.
func (e *Engine) Instance() leftovers.Instance {
	sum := sha256.Sum256([]byte(e.State))
	suffix := "-" + hex.EncodeToString(sum[:4])
	return leftovers.Instance{Root: e.Root(), State: e.State, Bridge: e.Bridge, NFTable: "evenkeel" + suffix, CgroupRoot: cgroupRoot("evenkeel" + suffix)}
}

// Systemd reports whether systemd is this machine's init, and so makes the cgroups of containers.
func Systemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// cgroupRoot is where the daemon keeps the cgroups of pods that name no parent. Of a slice a-b, systemd makes one within a.
func cgroupRoot(name string) string {
	if !Systemd() {
		return "/" + name
	}
	above, _, _ := strings.Cut(name, "-")
	if above == name {
		return "/" + name + ".slice"
	}
	return "/" + above + ".slice/" + name + ".slice"
}

// PodCgroup is a cgroup as the kubelet names those of pods.
func (e *Engine) PodCgroup() string {
	if Systemd() {
		return cgroupRoot(e.Bridge + "-pod4711")
	}
	return "/" + e.Bridge + "/pod4711"
}

func (e *Engine) removeTable() { // usually there is none
	exec.Command("nft", "delete", "table", "inet", e.Instance().NFTable).Run()
}

// CgroupDirs lists where a cgroup stands or would stand, one directory per hierarchy.
func CgroupDirs(path string) (dirs []string) {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{"/sys/fs/cgroup" + path}
	}
	entries, _ := os.ReadDir("/sys/fs/cgroup")
	for _, entry := range entries {
		if entry.IsDir() && entry.Name() != "unified" && entry.Name() != "systemd" {
			dirs = append(dirs, "/sys/fs/cgroup/"+entry.Name()+path)
		}
	}
	return dirs
}

// MakeCgroup makes a cgroup as the kubelet makes those of pods.
func MakeCgroup(path string) error {
	var errs []error
	for _, dir := range CgroupDirs(path) {
		errs = append(errs, os.MkdirAll(dir, 0o755))
	}
	return errors.Join(errs...)
}

// RemoveCgroup kills what lives in a cgroup and removes it, by force.
func RemoveCgroup(path string) {
	if Systemd() {
		exec.Command("systemctl", "stop", filepath.Base(path)).Run() // with all scopes in it
	}
	for _, root := range append(CgroupDirs(path), "/sys/fs/cgroup/systemd"+path, "/sys/fs/cgroup/unified"+path) {
		var dirs []string
		filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			emptyCgroup(dirs[i])
			os.Remove(dirs[i])
		}
	}
}

func emptyCgroup(dir string) {
	for range 100 {
		data, _ := os.ReadFile(dir + "/cgroup.procs")
		pids := strings.Fields(string(data))
		if len(pids) == 0 {
			return
		}
		for _, text := range pids {
			pid, _ := strconv.Atoi(text)
			syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func removeLink(name string) error {
	if _, err := net.InterfaceByName(name); err != nil {
		return nil
	}
	out, err := exec.Command("ip", "link", "delete", name).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cannot delete %s: %w: %s", name, err, out)
	}
	return nil
}
