package sandbox

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestRecordKeepsWhatItWasGiven(t *testing.T) {
	dir := t.TempDir()
	cfg := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "web", Attempt: 3},
		Envs:     []*cri.KeyValue{{Key: "RAW", Value: []byte{0xff, 0x00, 'x'}}},
		Labels:   map[string]string{"io.kubernetes.pod.name": "Ünïcode \"quoted\""},
	}
	want := containerRecord{ID: "a", Config: document[*cri.ContainerConfig]{cfg}, StartedAt: time.Now().UTC(), Exit: exit{Code: 137, Reason: "OOMKilled"}}
	want.User.Message, want.Resources.Message = &cri.ContainerUser{}, &cri.LinuxContainerResources{CpuShares: 2}
	if err := writeRecord(dir, &want); err != nil {
		t.Fatal(err)
	}
	var got containerRecord
	if err := readRecord(dir, &got); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got.Config.Message, cfg) {
		t.Errorf("config changed: %v", got.Config.Message)
	}
	if !got.StartedAt.Equal(want.StartedAt) || got.Exit != want.Exit || got.Resources.Message.CpuShares != 2 {
		t.Errorf("facts changed: %+v", got)
	}
}

func TestRecordOfAContainerWithoutResources(t *testing.T) {
	dir := t.TempDir()
	r := containerRecord{Config: document[*cri.ContainerConfig]{&cri.ContainerConfig{}}}
	if err := writeRecord(dir, &r); err != nil {
		t.Fatal(err)
	}
	var got containerRecord
	if err := readRecord(dir, &got); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedRecordsAreTold(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"empty":      func([]byte) []byte { return nil },
		"cut":        func(b []byte) []byte { return b[:len(b)-5] },
		"one bit":    func(b []byte) []byte { b[len(b)-3] ^= 1; return b },
		"other kind": func(b []byte) []byte { return append([]byte("x"), b...) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := writeRecord(dir, &podRecord{ID: "p", Config: document[*cri.PodSandboxConfig]{&cri.PodSandboxConfig{}}}); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, recordFile)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(data), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := readRecord(dir, &podRecord{}); !errors.Is(err, errBroken) {
				t.Errorf("got %v, want errBroken", err)
			}
		})
	}
	if err := readRecord(t.TempDir(), &podRecord{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing record gives %v", err)
	}
}

func TestStateFollowsFromFacts(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		name   string
		facts  containerRecord
		silent bool
		want   cri.ContainerState
	}{
		{"created", containerRecord{CreatedAt: now}, false, cri.ContainerState_CONTAINER_CREATED},
		{"running", containerRecord{CreatedAt: now, StartedAt: now}, false, cri.ContainerState_CONTAINER_RUNNING},
		{"silent shim", containerRecord{CreatedAt: now, StartedAt: now}, true, cri.ContainerState_CONTAINER_UNKNOWN},
		{"exited", containerRecord{CreatedAt: now, StartedAt: now, FinishedAt: now}, false, cri.ContainerState_CONTAINER_EXITED},
		{"exited, then silence", containerRecord{CreatedAt: now, FinishedAt: now}, true, cri.ContainerState_CONTAINER_EXITED},
	} {
		c := (&Pods{}).newContainer(test.facts)
		c.silent.Store(test.silent)
		if got := c.state(); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
	for _, test := range []struct {
		facts podRecord
		want  cri.PodSandboxState
	}{
		{podRecord{}, cri.PodSandboxState_SANDBOX_NOTREADY},
		{podRecord{ReadyAt: now}, cri.PodSandboxState_SANDBOX_READY},
		{podRecord{ReadyAt: now, StoppingAt: now}, cri.PodSandboxState_SANDBOX_NOTREADY},
		{podRecord{ReadyAt: now, Doomed: true}, cri.PodSandboxState_SANDBOX_NOTREADY},
	} {
		if got := test.facts.state(); got != test.want {
			t.Errorf("%+v is %s, want %s", test.facts, got, test.want)
		}
	}
}

// What a power cut leaves is told from what another version wrote.
func TestTornRecord(t *testing.T) {
	whole := t.TempDir()
	if err := writeRecord(whole, podRecord{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(whole, recordFile))
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		data []byte
		torn bool
	}{
		"empty":       {nil, true},
		"short head":  {good[:10], true},
		"short body":  {good[:len(good)-1], true},
		"zeros":       {make([]byte, len(good)), true},
		"other words": {[]byte("evenkeel-record-v9 0\n{}"), false},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, recordFile), c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := readRecord(dir, &podRecord{}); !errors.Is(err, errBroken) || errors.Is(err, errTorn) != c.torn {
			t.Errorf("%s: %v", what, err)
		}
	}
}
