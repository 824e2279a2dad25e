package sandbox

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/hostpath"
	"github.com/evenkeel/evenkeel/oci"
)

// findDevices looks up the devices a request names, and before them all of the node's for a privileged container.
func (c *creation) findDevices(ctx context.Context) ([]oci.Device, error) {
	c.doing.set("looking up its devices")
	ctx, stop := context.WithTimeoutCause(ctx, hostPathLimit, fmt.Errorf("no answer within %s: %w", hostPathLimit, ErrTimeout))
	defer stop()
	var devices []oci.Device
	if c.config.GetLinux().GetSecurityContext().GetPrivileged() {
		all, err := c.paths.Devices(ctx, "/dev")
		if err != nil {
			return nil, fmt.Errorf("cannot list the node's devices: %w", err)
		}
		devices = hostDevices(all)
	}
	for _, d := range c.config.GetDevices() {
		if !path.IsAbs(d.GetHostPath()) {
			return nil, fmt.Errorf("config.devices: host_path %q is not absolute: %w", d.GetHostPath(), ErrInvalid)
		}
		found, err := c.paths.Devices(ctx, d.GetHostPath())
		if err == nil && len(found) == 0 {
			err = fmt.Errorf("it is not a device: %w", ErrInvalid)
		}
		if err != nil {
			return nil, fmt.Errorf("config.devices: cannot find host device %s: %w", d.GetHostPath(), invalidIfMissing(err))
		}
		devices = append(devices, requestedDevices(d, found)...)
	}
	return devices, nil
}

// requestedDevices are those found at d's host path, where the request wants them.
func requestedDevices(d *cri.Device, found []hostpath.Node) []oci.Device {
	target, access := d.GetContainerPath(), d.GetPermissions()
	if target == "" {
		target = d.GetHostPath()
	}
	if access == "" {
		access = "rwm"
	}
	var devices []oci.Device
	for _, n := range found {
		devices = append(devices, device(n, target+strings.TrimPrefix(n.Path, d.GetHostPath()), access))
	}
	return devices
}

// hostDevices are the node's devices without those that every container gets as its own.
func hostDevices(all []hostpath.Node) []oci.Device {
	own := []string{"pts", "shm", "fd", "mqueue", "console", "ptmx", ".lxc", ".udev"}
	var devices []oci.Device
	for _, n := range all {
		first, _, _ := strings.Cut(strings.TrimPrefix(n.Path, "/dev/"), "/")
		if !slices.Contains(own, first) {
			devices = append(devices, device(n, n.Path, "rwm"))
		}
	}
	return devices
}

func device(n hostpath.Node, target, access string) oci.Device {
	mode, uid, gid := os.FileMode(n.Mode), n.UID, n.GID
	return oci.Device{Access: access, LinuxDevice: specs.LinuxDevice{
		Path: path.Clean(target), Type: n.Kind, Major: int64(n.Major), Minor: int64(n.Minor), FileMode: &mode, UID: &uid, GID: &gid,
	}}
}
