package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Of two records with one key the second is set aside: it is known to nobody, but what it may own is not a leftover.
func TestSecondRecordOfAKeyIsSetAside(t *testing.T) {
	p := emptyPods(t)
	first, second := strings.Repeat("a", 64), strings.Repeat("b", 64)
	metadata := &cri.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "1"}
	for _, id := range []string{first, second} {
		for dir, record := range map[string]any{
			p.podRoot(id): &podRecord{ID: id, CreatedAt: time.Now(), ReadyAt: time.Now(), Config: document[*cri.PodSandboxConfig]{&cri.PodSandboxConfig{Metadata: metadata}}},
			p.containerRoot("c" + id[1:]): &containerRecord{ID: "c" + id[1:], PodID: first, CreatedAt: time.Now(),
				Config:    document[*cri.ContainerConfig]{&cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "main"}}},
				Resources: document[*cri.LinuxContainerResources]{&cri.LinuxContainerResources{}}, User: document[*cri.ContainerUser]{&cri.ContainerUser{}}},
		} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := writeRecord(dir, record); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := p.Load(); err != nil {
		t.Fatal(err)
	}
	if pods, containers := p.index.allPods(), p.index.allContainers(""); len(pods) != 1 || pods[0].id != first || len(containers) != 1 || containers[0].id != "c"+first[1:] {
		t.Errorf("known are pods %v and containers %v", pods, containers)
	}
	for _, root := range []string{p.podRoot(second), p.containerRoot("c" + second[1:])} {
		if id := filepath.Base(root); !p.Known(id) {
			t.Errorf("%s is a leftover", id)
		}
		if _, err := os.Stat(filepath.Join(root, recordFile)); err != nil {
			t.Error(err)
		}
	}
}
