package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	v1 "k8s.io/api/core/v1"
)

// resolvConfOfTheNode and the rest of the world are fixed, so that a golden file depends on its manifest alone.
const resolvConfOfTheNode = "# a comment\nnameserver 192.0.2.53\nsearch node.test\noptions ndots:2 edns0\n"

// TestManifestsBecomeRequests compares what each manifest of testdata/run asks of the engine with its golden file. Run with
// -update after a wanted change, and read the difference.
func TestManifestsBecomeRequests(t *testing.T) {
	files, err := filepath.Glob("testdata/run/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	for _, file := range append(files, "../../examples/web.yaml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			golden := filepath.Join("testdata/run", strings.TrimSuffix(filepath.Base(file), ".yaml")+".json")
			got := requests(t, file)
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s differs from %s:\n%s", file, golden, got)
			}
		})
	}
}

func requests(t *testing.T, file string) []byte {
	t.Helper()
	pod, err := readManifest(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	pod.UID = "11111111-2222-4333-8444-555555555555"
	dir := podDir{"/var/lib/evenkeel/run/" + string(pod.UID)}
	at := place{dir: dir, ips: []string{"10.199.0.7", "fd00::7"}, images: map[string]imageFacts{}}
	uid := int64(65532)
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		at.images[c.Image] = imageFacts{ID: "sha256:" + strings.Repeat("ab", 32), UID: &uid}
	}
	all := map[string]json.RawMessage{"sandbox": plainJSON(t, sandboxConfig(pod, dir, resolvConfOfTheNode))}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			config, err := containerConfig(pod, &list[i], 0, at)
			if err != nil {
				t.Fatal(err)
			}
			all["container "+list[i].Name] = plainJSON(t, config)
		}
	}
	hosts, err := json.Marshal(hostsFile(pod, at.ips, "127.0.0.1 localhost node\n"))
	if err != nil {
		t.Fatal(err)
	}
	all["hosts"] = hosts
	raw, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(raw, '\n')
}

// plainJSON goes through a map, since protojson varies its white space on purpose. Bytes (the values of variables) are
// base64 in it.
func plainJSON(t *testing.T, m proto.Message) json.RawMessage {
	t.Helper()
	raw, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var value any
	if err := json.Unmarshal(raw, &value); err != nil {
		t.Fatal(err)
	}
	if raw, err = json.Marshal(value); err != nil {
		t.Fatal(err)
	}
	return raw
}
