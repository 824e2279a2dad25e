package network

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary plays badly behaved plugins: it is linked into a plugin directory under a name that begins with
// "player", and libcni runs it there.
func TestMain(m *testing.M) {
	if name := filepath.Base(os.Args[0]); strings.HasPrefix(name, "player") && os.Getenv("CNI_COMMAND") != "" {
		os.Exit(play(name))
	}
	if os.Getenv(stepEnv) != "" {
		os.Exit(takeStep())
	}
	os.Exit(m.Run())
}

// A part is what a player does for a verb: ok, fail, old, garbage, silent, crash, hang, linger. It is read from a file named by
// plugin and verb in the directory of the plugin, so a test can change it between two calls.
func play(name string) int {
	verb := os.Getenv("CNI_COMMAND")
	dir := filepath.Dir(os.Args[0])
	stdin, _ := io.ReadAll(os.Stdin)
	line, _ := json.Marshal(stageCall{name, verb, os.Getenv("CNI_CONTAINERID"), os.Getenv("CNI_NETNS"), os.Getenv("CNI_ARGS"), stdin, os.Getpid()})
	log, _ := os.OpenFile(filepath.Join(dir, "calls"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	fmt.Fprintf(log, "%s\n", line)
	log.Close()
	part, _ := os.ReadFile(filepath.Join(dir, name+"."+verb))
	switch string(part) {
	case "fail":
		fmt.Fprintln(os.Stderr, "a word on stderr")
		fmt.Print(`{"cniVersion":"1.1.0","code":7,"msg":"no such bridge","details":"look at br7"}`)
		return 1
	case "old":
		fmt.Print(`{"cniVersion":"1.1.0","code":1,"msg":"plugin version does not allow CHECK"}`)
		return 1
	case "garbage":
		fmt.Print("address: maybe")
		return 0
	case "silent":
		return 3
	case "crash":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "hang":
		hang(dir)
	case "linger":
		child := exec.Command("sleep", "5")
		child.Stdout, child.Stderr, child.SysProcAttr = os.Stdout, os.Stderr, &syscall.SysProcAttr{Setsid: true}
		child.Start()
	}
	if verb == "ADD" {
		fmt.Printf(`{"cniVersion":"1.1.0","interfaces":[{"name":"br"},{"name":"net1","sandbox":"x"},{"name":"eth0","sandbox":"x"}],
			"ips":[{"address":"10.0.0.1/24","interface":0},{"address":"10.0.1.9/24","interface":1},{"address":"10.0.0.9/24","interface":2},{"address":"fd00::9/64","interface":2}],
			"dns":{"nameservers":["10.0.0.53"],"domain":"example.org"}}`)
	}
	return 0
}

// hang starts a child that holds the pipes, as an address plugin does, and ignores what can be ignored.
func hang(dir string) {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	child := exec.Command("sleep", "1000")
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	child.Start()
	os.WriteFile(filepath.Join(dir, "child"), []byte(fmt.Sprint(child.Process.Pid)), 0o600)
	time.Sleep(1000 * time.Second)
}

type stageCall struct {
	Plugin, Verb, ID, NetNS, Args string
	Stdin                         json.RawMessage
	Pid                           int
}

// A stage is a plugin directory with players, and a configuration directory.
type stage struct {
	t         testing.TB
	dir, conf string
}

func newStage(t testing.TB, players ...string) *stage {
	s := &stage{t, t.TempDir(), filepath.Join(t.TempDir(), "etc/cni/net.d")}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range players {
		if err := os.Symlink(self, filepath.Join(s.dir, p)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *stage) part(player, verb, part string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, player+"."+verb), []byte(part), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// list writes a conflist of plugins, each given as the inside of its JSON object.
func (s *stage) list(file, name, version string, plugins ...string) {
	s.t.Helper()
	os.MkdirAll(s.conf, 0o700)
	var objects []string
	for _, p := range plugins {
		objects = append(objects, "{"+p+"}")
	}
	text := fmt.Sprintf(`{"cniVersion":%q,"name":%q,"plugins":[%s]}`, version, name, strings.Join(objects, ","))
	if err := os.WriteFile(filepath.Join(s.conf, file), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// calls are those since the last verbs, without STATUS, which is asked in the background.
func (s *stage) calls() []stageCall {
	return slices.DeleteFunc(s.allCalls(), func(c stageCall) bool { return c.Verb == "STATUS" })
}

func (s *stage) allCalls() []stageCall {
	data, _ := os.ReadFile(filepath.Join(s.dir, "calls"))
	var list []stageCall
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		var c stageCall
		if json.Unmarshal([]byte(line), &c) == nil {
			list = append(list, c)
		}
	}
	return list
}

// verbs are the calls since the last question, "player1 ADD, player2 ADD".
func (s *stage) verbs() string {
	var list []string
	for _, c := range s.calls() {
		list = append(list, c.Plugin+" "+c.Verb)
	}
	os.Remove(filepath.Join(s.dir, "calls"))
	return strings.Join(list, ", ")
}

func (s *stage) cni(t testing.TB) *CNI {
	c := &CNI{ConfDir: s.conf, BinDirs: []string{s.dir}, Dir: filepath.Join(t.TempDir(), "cni"), Log: testLog(t)}
	t.Cleanup(func() { c.Close() })
	return c
}
