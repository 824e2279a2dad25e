package image

import (
	_ "crypto/sha512" // sha512 digests are rare but legal in a reference
	"fmt"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2/registry"
)

// Reference is a fully qualified image name. Exactly one of Tag and Digest is set.
type Reference struct {
	Registry   string // docker.io, registry.k8s.io, localhost:5000
	Repository string // library/busybox
	Tag        string
	Digest     digest.Digest
}

const dockerHub = "docker.io"

var imageID = regexp.MustCompile(`^[a-f0-9]{64}$`)

// hostName is what the kubelet takes for one (github.com/distribution/reference, regexp.go). It is also the name of a directory
// with a hosts.toml, so it must not be "..".
var hostName = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[a-fA-F0-9:]+\])(:[0-9]+)?$`)

// ParseReference reads a reference as Kubernetes writes them (docker.io and library/ are implied, latest is the
// default tag; of name:tag@digest only the digest counts, https://kubernetes.io/docs/concepts/containers/images/).
// Errors are ErrReference.
func ParseReference(s string) (Reference, error) {
	if cure := refuse(s); cure != "" {
		return Reference{}, fmt.Errorf("%w %q: %s", ErrReference, s, cure)
	}
	name, tag, digested := splitName(s)
	ref := qualify(name)
	ref.Tag = tag
	if digested != "" {
		ref.Tag, ref.Digest = "", digest.Digest(digested)
	} else if tag == "" {
		ref.Tag = "latest"
	}
	if err := ref.check(tag); err != nil {
		return Reference{}, fmt.Errorf("%w %q: %v", ErrReference, s, err)
	}
	return ref, nil
}

// refuse names what is wrong with the mistakes that people really make.
func refuse(s string) string {
	switch {
	case s == "":
		return "it is empty; give a name such as docker.io/library/busybox:latest"
	case strings.Contains(s, "://"):
		return "leave out the scheme; plain http is set for the registry in hosts.toml"
	case imageID.MatchString(s):
		return "this is an image id; an image is pulled by name"
	}
	return ""
}

func splitName(s string) (name, tag, digested string) {
	name, digested, found := strings.Cut(s, "@")
	if found && digested == "" {
		digested = "@" // not a digest, so that the check below refuses it
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, tag = name[:i], name[i+1:]
		if tag == "" {
			tag = ":" // likewise
		}
	}
	return name, tag, digested
}

func qualify(name string) Reference {
	domain, rest, found := strings.Cut(name, "/")
	if !found || !(strings.ContainsAny(domain, ".:") || domain == "localhost" || strings.ToLower(domain) != domain) {
		domain, rest = dockerHub, name
	}
	if domain == "index.docker.io" {
		domain = dockerHub
	}
	if domain == dockerHub && !strings.Contains(rest, "/") {
		rest = "library/" + rest
	}
	return Reference{Registry: domain, Repository: rest}
}

func (r Reference) check(tag string) error {
	named := registry.Reference{Registry: r.Registry, Repository: r.Repository}
	if !hostName.MatchString(r.Registry) {
		return fmt.Errorf("%q is not a registry host name", r.Registry)
	}
	if err := named.ValidateRepository(); err != nil {
		return fmt.Errorf("%q is not a repository name: lower-case letters, digits and single separators . _ - / only", r.Repository)
	}
	if len(r.Name()) > 255 {
		return fmt.Errorf("the name is longer than 255 characters")
	}
	named.Reference = tag
	if err := named.ValidateReferenceAsTag(); tag != "" && err != nil {
		return fmt.Errorf("%q is not a tag: up to 128 letters, digits, _ . - and not . or - first", strings.Trim(tag, ":"))
	}
	if r.Digest != "" && r.Digest.Validate() != nil {
		return fmt.Errorf("%q is not a digest: write name@sha256: and 64 hexadecimal digits", strings.Trim(string(r.Digest), "@"))
	}
	return nil
}

// Name is the repository with its registry: docker.io/library/busybox.
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

func (r Reference) String() string {
	if r.Digest != "" {
		return r.Name() + "@" + string(r.Digest)
	}
	return r.Name() + ":" + r.Tag
}

// identifier is what stands at the end of the manifest's URL.
func (r Reference) identifier() string {
	if r.Digest != "" {
		return string(r.Digest)
	}
	return r.Tag
}
