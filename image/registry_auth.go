package image

import (
	"context"
	"fmt"
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
		found, key, err := lookUp(ctx, file, authKeys(e, ref))
		if err != nil || found != auth.EmptyCredential {
			return found, file + " (" + key + ")", err
		}
	}
	return auth.EmptyCredential, "", nil
}

// lookUp reads a config.json of Docker's form anew. A file that is missing holds nothing.
func lookUp(ctx context.Context, file string, keys []string) (found auth.Credential, key string, err error) {
	store, err := credentials.NewStore(file, credentials.StoreOptions{})
	if err != nil {
		return auth.EmptyCredential, "", fmt.Errorf("cannot read credentials: %w", err)
	}
	for _, key := range keys {
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
