package leftovers

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestMain lets a copy of the test binary play a shim or a runtime: it opens the files it is told to, says so, and stays.
func TestMain(m *testing.M) {
	files, play := os.LookupEnv("LEFTOVERS_TEST_OPEN")
	if !play {
		os.Exit(m.Run())
	}
	for name := range strings.SplitSeq(files, ":") {
		if name == "" {
			continue
		}
		if _, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600); err != nil {
			panic(err)
		}
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin) // until the test closes it
}

// A world is a temporary instance with one pod and one container that the engine knows, and one of each that it does not.
type world struct {
	*testing.T
	Instance
	dead, alive string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run the tests with sudo make test")
	}
	base, mark := t.TempDir(), newID()[:8]
	w := &world{T: t, dead: newID(), alive: newID(), Instance: Instance{
		Root: filepath.Join(base, "root"), State: filepath.Join(base, "state"),
		CgroupRoot: "/evenkeel-leftovers-" + mark, Bridge: "ek0-" + mark, NFTable: "evenkeel-" + mark,
	}}
	return w
}

func newID() string {
	b := make([]byte, 32)
	rand.Read(b)
	return hex.EncodeToString(b)
}

func (w *world) known(id string) bool { return id == w.alive }

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// find runs the search and turns it into "kind name" lines.
func (w *world) find(live func(string) bool) []string {
	w.Helper()
	found, err := w.Find(w.Context(), live)
	w.must(err)
	var lines []string
	for _, f := range found {
		lines = append(lines, f.Kind+" "+f.Name)
		if f.Detail == "" {
			w.Errorf("%s %s has no detail", f.Kind, f.Name)
		}
	}
	return lines
}

// expect compares what is found when the engine knows the living ones.
func (w *world) expect(want ...string) {
	w.Helper()
	slices.Sort(want)
	got := w.find(w.known)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		w.Errorf("found\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func (w *world) file(name string) string {
	w.Helper()
	w.must(os.MkdirAll(filepath.Dir(name), 0o755))
	w.must(os.WriteFile(name, nil, 0o600))
	return name
}

func (w *world) dir(parts ...string) string {
	w.Helper()
	name := filepath.Join(parts...)
	w.must(os.MkdirAll(name, 0o755))
	return name
}

// start runs a copy of the test binary under another name, until the returned function ends it.
func (w *world) start(program, cwd string, files []string, args ...string) (pid int, end func()) {
	w.Helper()
	binary := filepath.Join(w.TempDir(), program)
	self, err := os.Executable()
	w.must(err)
	data, err := os.ReadFile(self)
	w.must(err)
	w.must(os.WriteFile(binary, data, 0o755))
	c := exec.Command(binary, args...)
	c.Dir, c.Env = cwd, []string{"LEFTOVERS_TEST_OPEN=" + strings.Join(files, ":")}
	stdin, err := c.StdinPipe()
	w.must(err)
	stdout, err := c.StdoutPipe()
	w.must(err)
	w.must(c.Start())
	end = func() { stdin.Close(); c.Wait() }
	w.Cleanup(end)
	if _, err := io.ReadFull(stdout, make([]byte, len("ready\n"))); err != nil {
		w.Fatalf("%s did not start: %v", program, err)
	}
	return c.Process.Pid, end
}

func TestNothingIsFoundOnAMachineThatNeverRanUs(t *testing.T) {
	w := newWorld(t)
	w.expect()
	if found := w.find(nil); len(found) > 0 {
		t.Errorf("found %q", found)
	}
	if found, err := (Instance{}).Find(t.Context(), nil); len(found) > 0 || err != nil {
		t.Errorf("an instance without names found %v, %v", found, err)
	}
}

func TestDirectories(t *testing.T) {
	w := newWorld(t)
	var want []string
	for _, place := range []string{w.Root + "/pods", w.Root + "/containers", w.State + "/pods", w.State + "/containers", w.State + "/runc", w.State + "/crun"} {
		w.dir(place, w.alive)
		want = append(want, "directory "+w.dir(place, w.dead))
	}
	want = append(want,
		"directory "+w.dir(w.Root, "pods", "no-id-at-all"),
		"directory "+w.dir(w.Root, "images/ingest/pull-1"),
		"directory "+w.dir(w.Root, "images/trash/layer-1"),
		"directory "+w.dir(w.Root, "trash", w.alive+"-12345678"),
	)
	w.dir(w.Root, "images/layers/sha256-1")
	w.dir(w.State, "tls/keys")
	w.file(w.State + "/lock")
	w.expect(want...)
	if found := w.find(nil); len(found) != len(want)+6 {
		t.Errorf("with nothing known, %d findings instead of %d: %q", len(found), len(want)+6, found)
	}
}

func TestMountsAndNamespaces(t *testing.T) {
	w := newWorld(t)
	mount := func(id string) string {
		at := w.dir(w.State, "containers", id, "root fs") // the kernel writes the blank as \040
		w.must(unix.Mount("tmpfs", at, "tmpfs", 0, "size=4k"))
		t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
		return at
	}
	pin := func(id string) string {
		at := w.file(filepath.Join(w.State, "pods", id, "ns/uts"))
		w.must(unix.Mount("/proc/self/ns/uts", at, "", unix.MS_BIND, ""))
		t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
		return at
	}
	mount(w.alive)
	pin(w.alive)
	at, ns := mount(w.dead), pin(w.dead)
	directories := []string{"directory " + w.State + "/containers/" + w.dead, "directory " + w.State + "/pods/" + w.dead}
	w.expect(append(directories, "mount "+at, "namespace "+ns)...)

	w.must(unix.Unmount(at, 0))
	w.must(unix.Unmount(ns, 0))
	w.expect(directories...)
}

func TestMountsOfTheInstanceItselfAreNone(t *testing.T) {
	w := newWorld(t)
	w.dir(w.State)
	w.must(unix.Mount("tmpfs", w.State, "tmpfs", 0, "size=4k"))
	t.Cleanup(func() { unix.Unmount(w.State, unix.MNT_DETACH) })
	neighbour := w.dir(w.State + "-other/pods/x")
	w.must(unix.Mount("tmpfs", neighbour, "tmpfs", 0, "size=4k"))
	t.Cleanup(func() { unix.Unmount(neighbour, unix.MNT_DETACH) })
	w.expect()
}

func TestShimsAndTheirLogs(t *testing.T) {
	w := newWorld(t)
	logs := t.TempDir()
	deadDir, aliveDir := w.dir(w.State, "pods", w.dead), w.dir(w.State, "pods", w.alive)
	pid, end := w.start("evenkeel-shim", deadDir, []string{logs + "/a.log"}, "serve")
	alive, _ := w.start("evenkeel-shim", aliveDir, []string{logs + "/good.log", logs + "/gone.log", w.dir(w.State, "containers", w.dead) + "/log"}, "serve")
	w.start("evenkeel-shim", t.TempDir(), []string{logs + "/other.log"}, "serve") // another instance's
	w.must(os.Remove(logs + "/gone.log"))

	directories := []string{"directory " + deadDir, "directory " + w.State + "/containers/" + w.dead}
	fd := func(pid int, file string) string { return "descriptor " + descriptorOf(t, pid, file) }
	w.expect(append(directories,
		"process "+strconv.Itoa(pid), fd(pid, logs+"/a.log"),
		fd(alive, logs+"/gone.log (deleted)"), fd(alive, w.State+"/containers/"+w.dead+"/log"))...)

	// Its directory is gone and its program replaced, as after a teardown that was broken off and an upgrade.
	w.must(os.RemoveAll(deadDir))
	found := w.find(w.known)
	if !slices.Contains(found, "process "+strconv.Itoa(pid)) {
		t.Errorf("the shim without a directory is not found: %q", found)
	}
	end()
	if found := w.find(w.known); slices.Contains(found, "process "+strconv.Itoa(pid)) {
		t.Errorf("a process that ended is found: %q", found)
	}
}

func descriptorOf(t *testing.T, pid int, file string) string {
	t.Helper()
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, link := range links {
		if target, _ := os.Readlink(link); target == file {
			return link
		}
	}
	t.Fatalf("process %d does not hold %s", pid, file)
	return ""
}

func TestRuntimeCalls(t *testing.T) {
	w := newWorld(t)
	state := w.State + "/runc"
	spaced, _ := w.start("runc", "/", nil, "--root", state, "create", w.dead)
	equals, _ := w.start("crun", "/", nil, "--root="+state, "delete", w.dead)
	w.start("runc", "/", nil, "--root", state, "create", w.alive)
	w.start("runc", "/", nil, "--root", "/run/somebody/else", "create", w.dead)
	w.start("evenkeel", "/", nil, "serve", "--root", w.Root, "--state", w.State)
	w.expect("process "+strconv.Itoa(spaced), "process "+strconv.Itoa(equals))
}

func TestCgroupsAndWhoIsInThem(t *testing.T) {
	w := newWorld(t)
	roots, err := hierarchies()
	w.must(err)
	if len(roots) == 0 {
		t.Fatal("no cgroup hierarchy is mounted here")
	}
	root := usableHierarchy(t, roots)
	make := func(name string) string {
		dir := filepath.Join(root, w.CgroupRoot, name)
		w.must(os.MkdirAll(dir, 0o755))
		return dir
	}
	t.Cleanup(func() { removeCgroups(filepath.Join(root, w.CgroupRoot)) })
	dead := make(w.dead)
	alive := make("shop/" + w.alive)
	make("empty")
	scoped := make("evenkeel-" + w.dead + ".scope")
	groups := []string{"cgroup " + w.CgroupRoot + "/" + w.dead, "cgroup " + w.CgroupRoot + "/empty", "cgroup " + w.CgroupRoot + "/evenkeel-" + w.dead + ".scope"}
	w.expect(groups...)

	pid, end := w.start("sleeper", "/", nil)
	w.must(os.WriteFile(filepath.Join(dead, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0))
	good, endGood := w.start("sleeper", "/", nil)
	w.must(os.WriteFile(filepath.Join(alive, "cgroup.procs"), []byte(strconv.Itoa(good)), 0))
	w.expect(append(groups, "process "+strconv.Itoa(pid))...)
	end()
	endGood()

	w.must(syscall.Rmdir(scoped))
	w.must(syscall.Rmdir(dead))
	w.expect("cgroup " + w.CgroupRoot + "/empty")
}

// usableHierarchy: a new cpuset cgroup of v1 takes no process until it has cpus; any other hierarchy does.
func usableHierarchy(t *testing.T, roots []string) string {
	t.Helper()
	for _, root := range roots {
		if !strings.Contains(root, "cpuset") {
			return root
		}
	}
	t.Fatalf("no usable cgroup hierarchy among %q", roots)
	return ""
}

func removeCgroups(top string) {
	var dirs []string
	filepath.WalkDir(top, func(dir string, entry os.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, dir)
		}
		return nil
	})
	slices.Reverse(dirs)
	for _, dir := range dirs {
		syscall.Rmdir(dir)
	}
}

func TestRecordsOfTheNetworks(t *testing.T) {
	w := newWorld(t)
	link := func(name, to string) string {
		file := filepath.Join(w.dir(w.Root, "network", filepath.Dir(name)), filepath.Base(name))
		w.must(os.Symlink(to, file))
		return file
	}
	link("ip/10.1.0.2", w.alive)
	link("ip/last", "10.1.0.3")
	w.file(w.Root + "/network/pod-cidr")
	w.file(w.Root + "/network/cni/" + w.alive + ".json")
	w.expect(
		"address "+link("ip/10.1.0.3", w.dead),
		"address "+link("port/tcp-8080", w.dead+" 80"),
		"address "+w.file(w.Root+"/network/cni/"+w.dead+".json"),
		"address "+w.file(w.Root+"/network/cni/results/net-"+w.dead+"-eth0"),
	)
}

// ownNetwork puts the test into a network namespace of its own; its thread ends with the test.
func ownNetwork(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("cannot make a network namespace: %v", err)
	}
}

func TestLinks(t *testing.T) {
	ownNetwork(t)
	w := newWorld(t)
	bridge := w.bridge(w.Bridge)
	other := w.bridge("ek0-other")
	add := func(id string, master int, alias string) string {
		l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "ek" + id[:13], MasterIndex: master}, PeerName: "in" + id[:13]}
		w.must(netlink.LinkAdd(l))
		w.must(netlink.LinkSetAlias(l, alias))
		return "link ek" + id[:13]
	}
	add(w.alive, bridge, w.alive)
	add(newID(), other, w.dead) // in another instance's bridge
	unlabelled := newID()
	w.dir(w.Root, "pods", unlabelled)
	add(unlabelled, bridge, "")
	w.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "ekonomi0"}, PeerName: "ekonomi1"}))
	alive := w.alive
	found, err := w.Find(t.Context(), func(id string) bool { return id == alive || id == unlabelled })
	w.must(err)
	if len(found) > 0 {
		t.Fatalf("found %v", found)
	}
	w.must(os.RemoveAll(filepath.Join(w.Root, "pods", unlabelled)))
	w.expect(add(w.dead, bridge, w.dead), add(newID(), 0, ""), "link ek"+unlabelled[:13])
}

func (w *world) bridge(name string) int {
	w.Helper()
	b := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	w.must(netlink.LinkAdd(b))
	return b.Index
}

func TestRules(t *testing.T) {
	ownNetwork(t)
	w := newWorld(t)
	conn, err := nftables.New()
	w.must(err)
	for _, name := range []string{w.NFTable, "evenkeel-other"} {
		table := conn.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
		ports := &nftables.Set{Table: table, Name: "ports", IsMap: true, KeyType: nftables.TypeInetService, DataType: nftables.TypeIPAddr}
		w.must(conn.AddSet(ports, []nftables.SetElement{
			{Key: []byte{0, 80}, Val: []byte{10, 0, 0, 2}, Comment: w.alive},
			{Key: []byte{0, 81}, Val: []byte{10, 0, 0, 3}, Comment: w.dead},
		}))
		chain := conn.AddChain(&nftables.Chain{Name: "forward", Table: table})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, UserData: userdata.AppendString(nil, userdata.TypeComment, w.dead), Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte("ek"+w.dead[:13]), 0)},
		}})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}})
		conn.AddChain(&nftables.Chain{Name: "pod-" + w.dead, Table: table})
	}
	w.must(conn.Flush())
	found := w.find(w.known)
	var rest []string
	for _, line := range found {
		if !strings.HasPrefix(line, "nft rule "+w.NFTable+"/forward handle ") {
			rest = append(rest, line)
		}
	}
	want := []string{"nft rule " + w.NFTable + "/pod-" + w.dead, "nft rule " + w.NFTable + "/ports key 0051"}
	if len(found)-len(rest) != 2 || !slices.Equal(rest, want) {
		t.Errorf("found %q, want two rules and %q", found, want)
	}
	if all := w.find(nil); len(all) != len(found)+1 {
		t.Errorf("with nothing known, %d findings instead of %d: %q", len(all), len(found)+1, all)
	}
}

// What cannot be looked at must not pass for clean.
func TestUnreadablePlacesAreErrors(t *testing.T) {
	w := newWorld(t)
	w.file(w.Root + "/pods")
	w.dir(w.State, "pods", w.dead)
	found, err := w.Find(t.Context(), w.known)
	if err == nil || !strings.Contains(err.Error(), w.Root+"/pods") {
		t.Errorf("got error %v", err)
	}
	if len(found) != 1 {
		t.Errorf("the other places are not searched: %v", found)
	}
}
