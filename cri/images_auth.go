package cri

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/sandbox"
)

// authOf turns the credentials of a request into the image room's. Nil means none were given for the registry of name:
// credentials that say whom they are for go to no one else. No error repeats any part of them.
func authOf(c *cri.AuthConfig, name string) (*image.Auth, error) {
	if c == nil || !isFor(c.ServerAddress, name) {
		return nil, nil
	}
	auth := image.Auth{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}
	if auth == (image.Auth{}) && c.Auth != "" {
		var err error
		if auth.Username, auth.Password, err = decodeAuth(c.Auth); err != nil {
			return nil, fmt.Errorf("cannot use the credentials for %s: %w: %w", name, sandbox.ErrInvalid, err)
		}
	}
	if auth == (image.Auth{}) {
		return nil, nil
	}
	return &auth, nil
}

// decodeAuth reads the auth field of Docker's config.json, base64 of "user:password". Old clients padded the password
// with NUL bytes.
func decodeAuth(field string) (username, password string, err error) {
	plain, err := base64.StdEncoding.DecodeString(field)
	if err != nil {
		return "", "", fmt.Errorf("auth is not base64")
	}
	username, password, found := strings.Cut(string(plain), ":")
	if !found {
		return "", "", fmt.Errorf("auth is not base64 of user:password")
	}
	return username, strings.TrimRight(password, "\x00"), nil
}

// isFor reports whether a server address, with or without scheme and path, names the registry of an image. An empty
// one is for whatever is pulled.
func isFor(address, name string) bool {
	if address == "" {
		return true
	}
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	ref, err := image.ParseReference(name) // as the pull will read it: what the two took for the registry must not differ
	return err == nil && dockerHub(u.Host) == dockerHub(ref.Registry)
}

// dockerHub folds the names under which Docker's registry is known into one.
func dockerHub(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}
