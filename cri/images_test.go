package cri

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/sandbox"
)

func TestImageUserIsANumberOrANameNeverBoth(t *testing.T) {
	for user, want := range map[string]struct {
		uid  *int64
		name string
	}{
		"":           {nil, ""},
		"0":          {new(int64), ""},
		"1000":       {at(1000), ""},
		"1000:1000":  {at(1000), ""},
		"1000:staff": {at(1000), ""},
		"web":        {nil, "web"},
		"web:1000":   {nil, "web"},
		"1000web":    {nil, "1000web"},
		":1000":      {nil, ""},
	} {
		uid, name := imageUser(user)
		if name != want.name || (uid == nil) != (want.uid == nil) || uid != nil && uid.Value != *want.uid {
			t.Errorf("%q: uid %v, name %q", user, uid, name)
		}
	}
}

func at(n int64) *int64 { return &n }

func TestImageOfHasASizeAlways(t *testing.T) {
	got := imageOf(&image.Image{ID: "sha256:1", Tags: []string{"docker.io/library/web:1"}, Pinned: true,
		Config: ocispec.Image{Config: ocispec.ImageConfig{User: "7"}}})
	if got.Size == 0 || got.Id != "sha256:1" || !got.Pinned || got.Uid.GetValue() != 7 || got.RepoTags[0] != "docker.io/library/web:1" {
		t.Errorf("got %v", got)
	}
}

func TestAuth(t *testing.T) {
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, c := range []struct {
		what string
		name string
		in   *cri.AuthConfig
		want *image.Auth
	}{
		{"none", "web", nil, nil},
		{"empty", "web", &cri.AuthConfig{}, nil},
		{"plain", "web", &cri.AuthConfig{Username: "u", Password: "p"}, &image.Auth{Username: "u", Password: "p"}},
		{"plain wins over auth", "web", &cri.AuthConfig{Username: "u", Password: "p", Auth: encode("x:y")}, &image.Auth{Username: "u", Password: "p"}},
		{"auth", "web", &cri.AuthConfig{Auth: encode("u:p:q")}, &image.Auth{Username: "u", Password: "p:q"}},
		{"padded auth", "web", &cri.AuthConfig{Auth: encode("u:p\x00\x00")}, &image.Auth{Username: "u", Password: "p"}},
		{"identity token", "web", &cri.AuthConfig{IdentityToken: "t"}, &image.Auth{IdentityToken: "t"}},
		{"registry token", "web", &cri.AuthConfig{RegistryToken: "t"}, &image.Auth{RegistryToken: "t"}},
		{"for another host", "reg.example/web", &cri.AuthConfig{Username: "u", ServerAddress: "https://other.example"}, nil},
		{"for another port", "reg.example:5000/web", &cri.AuthConfig{Username: "u", ServerAddress: "reg.example"}, nil},
		{"for this host", "reg.example:5000/web", &cri.AuthConfig{Username: "u", ServerAddress: "https://reg.example:5000/v2/"}, &image.Auth{Username: "u"}},
		{"bare host", "reg.example:5000/web", &cri.AuthConfig{Username: "u", ServerAddress: "reg.example:5000"}, &image.Auth{Username: "u"}},
		{"for Docker Hub", "library/web", &cri.AuthConfig{Username: "u", ServerAddress: "https://index.docker.io/v1/"}, &image.Auth{Username: "u"}},
		{"for Docker Hub, pulling from a host in capitals", "Registry/web", &cri.AuthConfig{Username: "u", ServerAddress: "docker.io"}, nil},
		{"for Docker Hub, pulling elsewhere", "localhost/web", &cri.AuthConfig{Username: "u", ServerAddress: "https://index.docker.io/v1/"}, nil},
	} {
		got, err := authOf(c.in, c.name)
		if err != nil || (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.what, got, err, c.want)
		}
	}
}

func TestBadAuthIsRefusedWithoutRepeatingIt(t *testing.T) {
	for _, field := range []string{"n0t-base64!", base64.StdEncoding.EncodeToString([]byte("s3cret"))} {
		_, err := authOf(&cri.AuthConfig{Auth: field}, "web")
		if !errors.Is(err, sandbox.ErrInvalid) || strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), field) {
			t.Errorf("%q: %v", field, err)
		}
	}
}
