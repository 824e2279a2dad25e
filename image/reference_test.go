package image

import (
	"errors"
	"strings"
	"testing"
)

func TestParseReference(t *testing.T) {
	d := "sha256:" + strings.Repeat("a1", 32)
	for in, want := range map[string]string{
		"busybox":                    "docker.io/library/busybox:latest",
		"busybox:1.36":               "docker.io/library/busybox:1.36",
		"library/busybox":            "docker.io/library/busybox:latest",
		"docker.io/busybox":          "docker.io/library/busybox:latest",
		"index.docker.io/library/b":  "docker.io/library/b:latest",
		"team/app:v1":                "docker.io/team/app:v1",
		"quay.io/team/app":           "quay.io/team/app:latest",
		"localhost/app":              "localhost/app:latest",
		"localhost:5000/app:x":       "localhost:5000/app:x",
		"[::1]:5000/a/b":             "[::1]:5000/a/b:latest",
		"registry.k8s.io/a/b/c@" + d: "registry.k8s.io/a/b/c@" + d,
		"busybox:1.36@" + d:          "docker.io/library/busybox@" + d,
		"Registry.example/app":       "Registry.example/app:latest",
		"a__b/c-d.e:T_a-g.1":         "docker.io/a__b/c-d.e:T_a-g.1",
		"127.0.0.1:5000/x@sha512:" + strings.Repeat("b", 128): "127.0.0.1:5000/x@sha512:" + strings.Repeat("b", 128),
	} {
		got, err := ParseReference(in)
		if err != nil || got.String() != want {
			t.Errorf("%s: got %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestParseReferenceNamesTheCure(t *testing.T) {
	for in, cure := range map[string]string{
		"":                                    "empty",
		"https://quay.io/a":                   "scheme",
		"Busybox":                             "lower-case",
		"busybox:":                            "not a tag",
		"busybox:-x":                          "not a tag",
		"busybox:" + strings.Repeat("x", 129): "not a tag",
		"busybox:bad tag@sha256:" + strings.Repeat("a", 64): "not a tag",
		"busybox@":                               "not a digest",
		"busybox@sha256:abc":                     "not a digest",
		"busybox@md5:" + strings.Repeat("a", 32): "not a digest",
		strings.Repeat("a", 64):                  "image id",
		"quay.io/":                               "not a repository",
		"quay.io/a//b":                           "not a repository",
		"/a":                                     "not a repository",
		"../../etc/passwd":                       "not a registry",
		"../app":                                 "not a registry",
		"./app":                                  "not a registry",
		"a..b/app":                               "not a registry",
		"10.0.0.1_5000_/app":                     "not a registry",
		"a b":                                    "not a repository",
		"quay.io:port:x/a":                       "not a registry",
		"quay.io/" + strings.Repeat("a", 250):    "longer than 255",
	} {
		_, err := ParseReference(in)
		if !errors.Is(err, ErrReference) || !strings.Contains(err.Error(), cure) {
			t.Errorf("%q: %v; want %q", in, err, cure)
		}
	}
}
