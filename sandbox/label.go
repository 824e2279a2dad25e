package sandbox

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/hostpath"
	"github.com/evenkeel/evenkeel/oci"
)

// What containers of a pod share, its files and its /dev/shm, has the pod's SELinux label. A container with options of its own has
// another one for what is mounted for it alone.

// checkLabel refuses a pod whose options make no label.
func (p *Pods) checkLabel(cfg *cri.PodSandboxConfig) error {
	if _, err := oci.MountLabel(p.Host, cfg, nil); err != nil {
		return fmt.Errorf("config.linux.%w: %w", err, ErrInvalid)
	}
	return nil
}

// mountLabel is empty where SELinux is off.
func (p *pod) mountLabel() string {
	label, _ := oci.MountLabel(p.Host, p.facts().Config.Message, nil) // checked before there was a pod
	return label
}

// mountLabel of what is mounted for the container alone.
func (c *creation) mountLabel() (string, error) {
	label, err := oci.MountLabel(c.Host, c.pod.facts().Config.Message, c.config)
	if err != nil {
		return "", fmt.Errorf("cannot make container %q: %w: %w", c.config.Metadata.Name, err, ErrInvalid)
	}
	return label, nil
}

// labelFiles lets the pod's containers reach files of the pod's. A file system that was mounted with a label for all of its files
// has been given one by the administrator.
func (p *pod) labelFiles(names ...string) error {
	label := p.mountLabel()
	if label == "" {
		return nil
	}
	var errs []error
	for _, name := range names {
		if err := hostpath.SetLabel(p.file(name), label); err != nil && !errors.Is(err, unix.ENOTSUP) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
