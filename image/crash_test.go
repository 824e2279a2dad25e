package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/evenkeel/evenkeel/internal/effect"
)

// The test binary plays the daemon that is killed: TestMain runs one operation on a store and exits.
const childEnv = "EVENKEEL_IMAGE_CHILD" // operation|root|argument

func TestMain(m *testing.M) {
	if job := os.Getenv(childEnv); job != "" {
		os.Exit(child(strings.Split(job, "|")))
	}
	os.Exit(m.Run())
}

func child(job []string) int {
	ctx := context.Background()
	s := &Store{Root: job[1], Lease: -1}
	err := s.Open(ctx)
	if err == nil {
		switch job[0] {
		case "pull":
			_, err = s.Pull(ctx, job[2], PullOptions{})
		case "measure":
			_, err = s.Pull(ctx, job[2], PullOptions{})
			status, _ := os.ReadFile("/proc/self/status")
			_, peak, _ := strings.Cut(string(status), "VmHWM:")
			fmt.Println(strings.Fields(peak)[0])
		case "remove":
			err = s.Remove(ctx, job[2])
		case "import":
			var f *os.File
			if f, err = os.Open(job[2]); err == nil {
				_, err = s.Import(ctx, f, nil)
			}
		}
		s.background.Wait()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// strike runs a job in a child that obeys a fault, and reports whether it was killed.
func strike(t *testing.T, fault, trace string, job ...string) (killed bool, output string) {
	t.Helper()
	cmd := exec.CommandContext(deadline(t), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join(job, "|"), effect.FaultEnv+"="+fault, effect.TraceEnv+"="+trace)
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	cmd.Run()
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	return status.Signaled() && status.Signal() == syscall.SIGKILL, text.String()
}

func TestKilledAtEveryEffect(t *testing.T) {
	h := newHub(t)
	shared := pack("gzip", file{"shared", noise(1, 100<<10), 0})
	old := imageOf(t, "", shared, pack("gzip", file{"old", "1", 0}))
	other := h.push(t, "other:1", old)
	now := imageOf(t, "", shared, pack("zstd", file{"a/", "", 0o700}), pack("", file{"a/b", "2", 0}))
	ref := h.push(t, "app:1", old)
	archive := filepath.Join(t.TempDir(), "archive.tar")
	if err := os.WriteFile(archive, dockerArchive(t, "imported:1", imageOf(t, "", shared, pack("gzip", file{"i", "1", 0}))), 0o644); err != nil {
		t.Fatal(err)
	}
	points := 0
	for _, c := range []struct {
		name  string
		seed  []string // pulled before, of the old app:1
		job   []string
		lost  string // the tag that the job takes away, if it is done
		image string // the tag that it brings
	}{
		{"first pull", nil, []string{"pull", ref}, "", ref},
		{"pull that moves a tag", []string{ref, other}, []string{"pull", ref}, "", ref},
		{"remove", []string{ref}, []string{"remove", ref}, ref, ""},
		{"import", []string{other}, []string{"import", archive}, "", "docker.io/library/imported:1"},
	} {
		seed := t.TempDir()
		h.push(t, "app:1", old)
		for _, r := range c.seed {
			if _, out := strike(t, "", "", "pull", seed, r); out != "" {
				t.Fatal(out)
			}
		}
		if c.job[0] == "pull" {
			h.push(t, "app:1", now)
		}
		trace := filepath.Join(t.TempDir(), "trace")
		if _, out := strike(t, "", trace, append([]string{c.job[0], copyOf(t, seed)}, c.job[1:]...)...); out != "" {
			t.Fatal(out)
		}
		effects := lines(t, trace)
		for _, name := range effects {
			for _, action := range []string{"kill-before", "kill-after", "fail-before", "fail-after"} {
				points++
				root := copyOf(t, seed)
				killed, out := strike(t, action+":"+name, "", append([]string{c.job[0], root}, c.job[1:]...)...)
				if strings.HasPrefix(action, "kill") != killed {
					t.Errorf("%s, %s %s: killed is %v\n%s", c.name, action, name, killed, out)
				}
				recovered(t, fmt.Sprintf("%s, %s %s", c.name, action, name), root, c.seed, append([]string{c.job[0], root}, c.job[1:]...), c.lost, c.image)
			}
		}
		t.Logf("%s: %v", c.name, effects)
	}
	t.Logf("%d kill and failure points", points)
}

// recovered opens a store after a crash, checks that nothing is left half-done, and that the retried job succeeds.
func recovered(t *testing.T, what, root string, seed, job []string, lost, brought string) {
	t.Helper()
	s := &Store{Root: root, Lease: -1}
	if err := s.Open(context.Background()); err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	defer s.Close()
	check := func(when string) {
		t.Helper()
		layers := map[string]bool{}
		for _, img := range s.List() {
			checkWhole(t, img)
			for _, l := range img.Layers {
				layers[string(l.DiffID)] = true
			}
		}
		tidy(t, s, len(s.List()), len(layers))
		for _, ref := range seed {
			if _, err := s.Get(ref); err != nil && ref != lost {
				t.Errorf("%s, %s: %s is gone: %v", what, when, ref, err)
			}
		}
		if t.Failed() {
			t.Fatalf("%s, %s", what, when)
		}
	}
	check("after the restart")
	if _, out := strike(t, "", "", job...); out != "" {
		t.Errorf("%s: retry: %s", what, out)
	}
	reopen(t, s)
	check("after the retry")
	if _, err := s.Get(brought); brought != "" && err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if _, err := s.Get(lost); lost != "" && err == nil {
		t.Errorf("%s: %s is still there", what, lost)
	}
}

// Pulling needs memory for what is under way, not for what an image holds.
func TestPullNeedsLittleMemory(t *testing.T) {
	h := newHub(t)
	var layers []v1.Layer
	for i := range 4 {
		layers = append(layers, pack([]string{"gzip", "zstd", ""}[i%3], file{"big", noise(uint64(i), 24<<20), 0}))
	}
	ref := h.push(t, "big:1", imageOf(t, "", layers...))
	cmd := exec.CommandContext(deadline(t), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=measure|"+t.TempDir()+"|"+ref)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v %s", err, out)
	}
	peak := 0
	fmt.Sscan(string(out), &peak)
	peak >>= 10
	t.Logf("peak of a process that pulls %d MiB: %d MiB", 4*24, peak)
	if peak == 0 || peak > 120 { // without the race detector it is about 40
		t.Errorf("peak memory %d MiB", peak)
	}
}

func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if out, err := exec.Command("cp", "-a", dir+"/.", to).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	return to
}

func lines(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	list := strings.Fields(string(text))
	slices.Sort(list)
	return slices.Compact(list)
}

func TestOpenAfterDamage(t *testing.T) {
	h, s := newHub(t), newStore(t)
	one := h.push(t, "one:1", imageOf(t, "", pack("gzip", file{"a", "1", 0}), pack("zstd", file{"c", "3", 0})))
	two := h.push(t, "two:1", imageOf(t, "", pack("gzip", file{"b", "2", 0})))
	records := map[string]func(img *Image) error{
		"torn record":   func(img *Image) error { return os.Truncate(s.recordPath(img.ID), 100) },
		"empty record":  func(img *Image) error { return os.Truncate(s.recordPath(img.ID), 0) },
		"edited record": func(img *Image) error { return edit(s.recordPath(img.ID), one, strings.ToUpper(one)) },
	}
	for name, damage := range records {
		damageOne(t, s, one, two, damage)
		if _, err := s.Get(one); err == nil {
			t.Errorf("%s: the image is still listed", name)
		}
		broken, _ := filepath.Glob(filepath.Join(s.Root, "images", "*.broken"))
		if len(broken) != 1 {
			t.Errorf("%s: set aside %v", name, broken)
		}
		os.Remove(broken[0])
		tidy(t, s, 1, 1)
	}
	layers := map[string]func(img *Image) error{
		"missing layer": func(img *Image) error { return os.RemoveAll(filepath.Dir(img.Layers[0].Dir)) },
		"missing tree":  func(img *Image) error { return os.RemoveAll(img.Layers[0].Dir) },
		"torn layer.json": func(img *Image) error {
			return os.Truncate(filepath.Join(filepath.Dir(img.Layers[0].Dir), "layer.json"), 10)
		},
	}
	for name, damage := range layers {
		damageOne(t, s, one, two, damage) // and hear how it heals
		if _, err := s.Get(one); err != nil {
			t.Errorf("%s: the image was not healed: %v", name, err)
		}
		tidy(t, s, 2, 3)
	}
	h.hand(status("/", 503))
	damageOne(t, s, one, two, layers["missing layer"])
	if _, err := s.Get(one); !errors.Is(err, ErrNotFound) {
		t.Errorf("an image without a layer, which nobody has, is listed: %v", err)
	}
	if list, _ := os.ReadDir(filepath.Join(s.Root, "layers")); len(list) != 2 {
		t.Errorf("the other layer of the broken image did not stay: %v", list)
	}
	h.hand(nil)
	h.forget()
	pull(t, s, one)
	if n := h.asked("/one/blobs/"); n != 2 { // the config and the layer
		t.Errorf("the pull of a broken image asked for %d blobs: %v", n, h.requests)
	}
	damageOne(t, s, one, two, layers["missing layer"])
	h.hand(status("/", 503))
	damageOne(t, s, two, two, layers["missing layer"])
	if err := s.Remove(deadline(t), two); err != nil {
		t.Error(err)
	}
	tidy(t, s, 1, 2)
}

// damageOne does something to image one while the store is closed, and leaves rubbish besides.
func damageOne(t *testing.T, s *Store, one, two string, damage func(*Image) error) {
	t.Helper()
	img, err := s.Get(one)
	if err != nil {
		img = pull(t, s, one)
	}
	if _, err := s.Get(two); err != nil {
		pull(t, s, two)
	}
	if err := damage(img); err != nil {
		t.Fatal(err)
	}
	os.MkdirAll(filepath.Join(s.ingest(), "layer-123", "fs"), 0o755)
	os.MkdirAll(filepath.Join(s.trash(), "1", "x", "y"), 0o755)
	os.WriteFile(filepath.Join(s.Root, "images", ".new-1"), nil, 0o600)
	reopen(t, s)
	s.background.Wait()
	if _, err := s.Get(two); one != two && err != nil {
		t.Errorf("the other image has gone: %v", err)
	}
}

func edit(path, old, now string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, bytes.ReplaceAll(text, []byte(old), []byte(now)), 0o600)
}

func TestOpenAgainKnowsEverything(t *testing.T) {
	h, s := newHub(t), newStore(t)
	ref := h.push(t, "app:1", imageOf(t, "", pack("gzip", file{"a", "1", 0}), pack("gzip", file{"b", "2", 0})))
	img := pull(t, s, ref)
	bytes, inodes := s.FsInfo()
	again := &Store{Root: s.Root, Lease: -1}
	reopen(t, again)
	defer again.Close()
	got, err := again.Get(ref)
	if err != nil || fmt.Sprint(*got) != fmt.Sprint(*img) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, img)
	}
	if b, i := again.FsInfo(); b != bytes || i != inodes {
		t.Errorf("FsInfo %d %d, was %d %d", b, i, bytes, inodes)
	}
	s.Close()
	if _, err := s.Pull(deadline(t), ref, PullOptions{}); err == nil {
		t.Error("a closed store pulls")
	}
}
