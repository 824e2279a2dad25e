package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/internal/namespace"
	"github.com/evenkeel/evenkeel/oci"
	"github.com/evenkeel/evenkeel/shim"
)

// A pod's user namespace owns its other namespaces. It is made with them (package namespace), or, for a pod that shares
// one PID namespace, with the pod's init, since the PID namespace must be its too.

// checkUserNamespace refuses what the CRI calls invalid, then what this machine or handler cannot do.
func (p *Pods) checkUserNamespace(cfg *cri.PodSandboxConfig, handler string) error {
	const field = "config.linux.security_context."
	mapping, err := oci.UserNamespace(cfg)
	switch {
	case err != nil:
		return fmt.Errorf("%s%w: %w", field, err, ErrInvalid)
	case mapping == nil:
		return nil
	case !p.Runtimes[handler].UserNamespaces:
		return fmt.Errorf("%snamespace_options.userns_options: the OCI runtime of handler %q has no user namespaces with idmapped mounts: %w", field, handler, ErrUnsupported)
	case p.NoUserNamespaces != nil:
		return fmt.Errorf("%snamespace_options.userns_options: user namespaces cannot be used here: %w: %w", field, p.NoUserNamespaces, ErrUnsupported)
	}
	return nil
}

// HasUserNamespaces tells whether pods of a handler can have user namespaces: runtime, kernel and file system all play a part.
func (p *Pods) HasUserNamespaces(handler string) bool {
	r := p.Runtimes[handler]
	return r != nil && r.UserNamespaces && p.NoUserNamespaces == nil
}

// hasUserNamespaces reads the runtime's own word (runtime-spec, features.md): a rootfs can be shown to a user namespace by
// the engine alone, volumes cannot.
func hasUserNamespaces(f *features.Linux) bool {
	if f == nil || !slices.Contains(f.Namespaces, string(specs.UserNamespace)) || f.MountExtensions == nil {
		return false
	}
	idmap := f.MountExtensions.IDMap
	return idmap != nil && idmap.Enabled != nil && *idmap.Enabled
}

// userNamespace is the pod's mapping, or nil.
func (p *pod) userNamespace() *namespace.IDs {
	mapping, err := oci.UserNamespace(p.facts().Config.Message)
	if err != nil || mapping == nil {
		return nil
	}
	return &namespace.IDs{Host: mapping.HostID, Length: mapping.Size}
}

// initOwns tells that the pod's namespaces are made with its init.
func (p *pod) initOwns() bool { return p.sharesPID() && p.userNamespace() != nil }

// owned is what the init makes with its PID namespace.
func owned(want namespace.Options) *shim.OwnedNamespaces {
	o := &shim.OwnedNamespaces{FirstID: int(want.User.Host), IDs: int(want.User.Length)}
	for _, kind := range []struct {
		wanted bool
		flag   uint
	}{{want.Net, unix.CLONE_NEWNET}, {want.IPC, unix.CLONE_NEWIPC}, {want.UTS, unix.CLONE_NEWUTS}} {
		if kind.wanted {
			o.Flags |= kind.flag
		}
	}
	return o
}

// pinInits pins the namespaces that the init made.
func (p *pod) pinInits(ctx context.Context) error {
	state, err := p.shim().State(ctx)
	if err != nil {
		return err
	}
	return namespace.PinProcess(p.namespaceDir(), state.Init.PID, p.namespacesWanted())
}

// owner is who the pod's files and pipes belong to: its root, as the host sees it.
func (p *pod) owner() shim.Owner {
	if ids := p.userNamespace(); ids != nil {
		return shim.Owner{UID: int(ids.Host), GID: int(ids.Host)}
	}
	return shim.Owner{}
}

// giveFiles lets the pod's root change its own /etc/hosts, as it can without a user namespace.
func (p *pod) giveFiles(names ...string) error {
	owner := p.owner()
	if owner == (shim.Owner{}) {
		return nil
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, os.Chown(p.file(name), owner.UID, owner.GID))
	}
	return errors.Join(errs...)
}

// idMap shows images to the pod's user namespace; nil where it has none.
func (p *pod) idMap() *image.IDMap {
	owner := p.owner()
	if p.userNamespace() == nil {
		return nil
	}
	return &image.IDMap{UserNS: p.namespaces()[specs.UserNamespace], UID: owner.UID, GID: owner.GID}
}

// ProbeUserNamespaces finds out whether this machine can give pods user namespaces, with images and engine files in these
// directories, by making one. The error says why not.
func ProbeUserNamespaces(ctx context.Context, images, state string) error {
	if err := enterable(state); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(state, ".userns-")
	if err != nil {
		return fmt.Errorf("cannot try a user namespace: %w", err)
	}
	defer os.Remove(dir)
	pins := filepath.Join(dir, "ns")
	someIDs := namespace.IDs{Host: 1 << 16, Length: 1 << 16}
	if err := namespace.Pin(ctx, pins, namespace.Options{Net: true, IPC: true, UTS: true, User: &someIDs}); err != nil {
		return errors.Join(err, namespace.Unpin(pins))
	}
	err = image.ProbeIDMap(images, image.IDMap{UserNS: filepath.Join(pins, "user"), UID: 1 << 16, GID: 1 << 16})
	return errors.Join(err, namespace.Unpin(pins))
}

// enterable finds a directory on the way that only its owner may enter. The runtime enters as the pod's root, who is nobody
// of importance to the host.
func enterable(dir string) error {
	for ; dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("cannot examine the way to the root file systems: %w", err)
		}
		if info.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("%s has mode %#o, and other users must be able to enter it (chmod o+x)", dir, info.Mode().Perm())
		}
	}
	return nil
}
