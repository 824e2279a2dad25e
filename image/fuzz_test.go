package image

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// echo is a source in which every document is the fuzzer's.
type echo []byte

func (e echo) manifest(context.Context, ocispec.Descriptor) ([]byte, error) { return e, nil }
func (e echo) config(context.Context, ocispec.Descriptor) ([]byte, error)   { return e, nil }
func (e echo) blob(context.Context, ocispec.Descriptor, int) (io.ReadCloser, error) {
	return nil, errors.New("none")
}

// FuzzManifest reads whatever a registry may answer as manifest, index, config and artifact.
func FuzzManifest(f *testing.F) {
	d := digest.FromString("x").String()
	for _, text := range []string{
		`{}`, `{"schemaVersion":1,"fsLayers":[]}`, `{"manifests":[{"digest":"` + d + `","platform":{"architecture":"amd64","os":"linux"}}]}`,
		`{"config":{"digest":"` + d + `"},"layers":[{"digest":"` + d + `","size":1}],"rootfs":{"diff_ids":["` + d + `"]},"architecture":"amd64"}`,
		`{"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"` + d + `"},"layers":[{"digest":"` + d + `","annotations":{"org.opencontainers.image.title":"../x"}}]}`,
		`{"manifests":[],"config":{}}`, `[]`, `null`, `{"config":null,"layers":null,"manifests":null}`,
	} {
		f.Add([]byte(text), "application/vnd.oci.image.manifest.v1+json")
	}
	f.Fuzz(func(t *testing.T, text []byte, media string) {
		desc := ocispec.Descriptor{MediaType: media, Digest: digest.FromBytes(text)}
		p, err := makePlan(t.Context(), echo(text), desc, thisMachine())
		if err != nil {
			return
		}
		for _, l := range p.layers {
			if l.diffID.Validate() != nil || l.Digest.Validate() != nil || l.Size < 0 {
				t.Errorf("a plan with layer %+v", l)
			}
		}
		r := record{ID: p.id(), Config: p.config, Artifact: p.artifact}
		if err := r.read(); err != nil {
			t.Errorf("a plan whose record cannot be read: %v", err)
		}
	})
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"busybox", "a.b:5/c/d:tag@sha256:x", "docker.io/library/x:1", "[::1]:5/x", ":", "@", "A/b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		again, err := ParseReference(r.String())
		if err != nil || again != r {
			t.Errorf("%q is %+v, which reads %+v, %v", s, r, again, err)
		}
	})
}
