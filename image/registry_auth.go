package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
)

// credentials answers a host's challenge: with what the request brought, if the host is the registry that it is for;
// otherwise with what the operator has written for that host, or for the registry, into one of the store's AuthFiles.
//
// containerd and CRI-O offer a request's credentials to every mirror. A mirror is a host that somebody else may run, and
// a pod's pull secret was given for the registry in the pod's image name; so a mirror gets it only when it is listed in
// Share.
func (s *Store) credentials(e endpoint, ref Reference, a *Auth) auth.CredentialFunc {
	return func(ctx context.Context, host string) (auth.Credential, error) {
		found, _, err := s.credential(ctx, e, ref, a)
		return found, err
	}
}

// credential also says where it was found.
func (s *Store) credential(ctx context.Context, e endpoint, ref Reference, a *Auth) (found auth.Credential, source string, err error) {
	if a != nil && *a != (Auth{}) && (e.own || slices.Contains(s.Share, e.host)) {
		given := auth.Credential{Username: a.Username, Password: a.Password, RefreshToken: a.IdentityToken, AccessToken: a.RegistryToken}
		return given, "the request", nil
	}
	for _, file := range s.AuthFiles {
		found, key, err := lookUp(ctx, file, authKeys(e, ref), authTargets(e, ref))
		if err != nil || found != auth.EmptyCredential {
			return found, file + " (" + key + ")", err
		}
	}
	return auth.EmptyCredential, "", nil
}

// lookUp reads a config.json of Docker's form anew. A file that is missing holds nothing. Its patterns that match one of the targets
// come after the keys.
func lookUp(ctx context.Context, file string, keys, targets []string) (found auth.Credential, key string, err error) {
	store, err := credentials.NewStore(file, credentials.StoreOptions{})
	if err != nil {
		return auth.EmptyCredential, "", fmt.Errorf("cannot read credentials: %w", err)
	}
	patterns, err := authPatterns(file, targets)
	if err != nil {
		return auth.EmptyCredential, "", fmt.Errorf("cannot read credentials: %w", err)
	}
	for _, key := range slices.Concat(keys, patterns) {
		found, err := store.Get(ctx, key)
		if err != nil {
			return auth.EmptyCredential, key, fmt.Errorf("cannot read the credentials of %s in %s: %w", key, file, err)
		}
		if found != auth.EmptyCredential {
			return found, key, nil
		}
	}
	return auth.EmptyCredential, "", nil
}

// authKeys lists the names under which credentials for a host may stand, the most particular first: the kubelet
// also knows registry/path (https://kubernetes.io/docs/concepts/containers/images/#config-json).
func authKeys(e endpoint, ref Reference) []string {
	own := ownHost(ref.Registry).host
	if !e.own {
		return []string{e.host}
	}
	var keys []string
	for name := ref.Name(); strings.Contains(name, "/"); name = name[:strings.LastIndexByte(name, '/')] {
		keys = append(keys, name)
	}
	keys = append(keys, ref.Registry)
	if ref.Registry == dockerHub {
		keys = append(keys, "https://index.docker.io/v1/", "index.docker.io", own)
	}
	if e.host != own {
		keys = append([]string{e.host}, keys...)
	}
	return keys
}

// authTargets lists what a pattern may match: the name of the image at the registry itself, and the host where that is another one.
func authTargets(e endpoint, ref Reference) []string {
	if !e.own {
		return []string{e.host}
	}
	if e.host != ownHost(ref.Registry).host {
		return []string{e.host, ref.Name()}
	}
	return []string{ref.Name()}
}

// authPatterns lists the keys of a config.json that are patterns and match a target, in the kubelet's order: reversed, so that what
// is more particular comes first (pkg/credentialprovider/keyring.go).
func authPatterns(file string, targets []string) ([]string, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var config struct {
		Auths map[string]json.RawMessage `json:"auths"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var patterns []string
	for key := range config.Auths {
		if strings.ContainsAny(key, "*?[") && slices.ContainsFunc(targets, func(t string) bool { return matchAuth(key, t) }) {
			patterns = append(patterns, key)
		}
	}
	slices.SortFunc(patterns, func(a, b string) int { return strings.Compare(schemeless(b), schemeless(a)) })
	return patterns, nil
}

// matchAuth has the kubelet's rules: as many labels in the host, each matched on its own, so that no star spans a dot; the same port,
// or none; a path is a prefix (https://kubernetes.io/docs/concepts/containers/images/#config-json).
func matchAuth(pattern, target string) bool {
	wantHost, wantPath, _ := strings.Cut(schemeless(pattern), "/")
	host, path, _ := strings.Cut(target, "/")
	if port(wantHost) != port(host) || !strings.HasPrefix(path, wantPath) {
		return false
	}
	want, labels := strings.Split(withoutPort(wantHost), "."), strings.Split(withoutPort(host), ".")
	if len(want) != len(labels) {
		return false
	}
	for i, label := range labels {
		if ok, err := filepath.Match(want[i], label); !ok || err != nil {
			return false
		}
	}
	return true
}

// schemeless is a key as the kubelet compares it: without the scheme, and without the API's version, which Docker once wrote.
func schemeless(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, path, _ := strings.Cut(key, "/")
	for _, version := range []string{"v1/", "v2/"} {
		if rest, ok := strings.CutPrefix(path, version); ok {
			path = rest
			break
		}
	}
	if path == "" {
		return host
	}
	return host + "/" + path
}

func withoutPort(host string) string { return strings.TrimSuffix(host, ":"+port(host)) }
