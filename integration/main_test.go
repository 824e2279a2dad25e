package integration

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/nri/pkg/api"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/integration/registry"
)

// What every test shares: where the binaries are, and a registry with one small image.
var (
	bin     string
	images  *registry.Registry
	busybox string // reference
)

func TestMain(m *testing.M) {
	if os.Getenv(api.PluginNameEnvVar) != "" { // the daemon has started this program as a plugin
		if err := runLaunched(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return
	}
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "integration tests cannot run:", err)
		os.Exit(1)
	}
	code := m.Run()
	images.Close()
	if err := writeReport(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// reportEnv names a file for the numbers that the tests measured; go test shows a passing test's own log only with -v.
const reportEnv = "EVENKEEL_TEST_REPORT"

var report struct {
	sync.Mutex
	lines []string
}

// measured puts a number into the report.
func measured(t *testing.T, format string, args ...any) {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	t.Log(line)
	report.Lock()
	defer report.Unlock()
	report.lines = append(report.lines, line)
}

// writeReport appends: a second try of some tests adds to what the first run measured.
func writeReport() error {
	if os.Getenv(reportEnv) == "" {
		return nil
	}
	f, err := os.OpenFile(os.Getenv(reportEnv), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(report.lines, "\n") + "\n")
	return errors.Join(err, f.Close())
}

func prepare() (err error) {
	if os.Getuid() != 0 {
		return fmt.Errorf("containers cannot be made without root: sudo make test")
	}
	if bin, err = engine.Binaries(); err != nil {
		return err
	}
	img, err := registry.Busybox()
	if err != nil {
		return err
	}
	images = registry.Serve()
	busybox, err = images.Push("busybox:latest", img)
	return err
}

// waits marks a test that waits for most of its time and measures none: such tests run beside each other, after all others.
func waits(t *testing.T) { t.Parallel() }

// image pushes an image made for one test and returns its reference.
func image(t *testing.T, repository string, config v1.Config, files ...registry.File) string {
	t.Helper()
	layer, err := registry.Layer(files...)
	must(t, err)
	img, err := registry.Image(config, layer)
	must(t, err)
	ref, err := images.Push(repository, img)
	must(t, err)
	return ref
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
