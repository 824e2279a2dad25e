package sandbox

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	cdispecs "tags.cncf.io/container-device-interface/specs-go"
)

// cdiDirs are where vendors put their specifications; the later directory wins (CDI's SPEC.md).
var cdiDirs = []string{"/etc/cdi", "/var/run/cdi"}

// findCDI reads the specifications of the requested devices: each vendor's own edits once, before those of its first device.
// They are read for each request, which is rare, so that nothing has to watch the directories.
func (c *creation) findCDI(ctx context.Context, cfg *cri.ContainerConfig) ([]cdispecs.ContainerEdits, error) {
	if len(cfg.GetCDIDevices()) == 0 {
		return nil, nil
	}
	c.doing.set("looking up its CDI devices")
	ctx, stop := context.WithTimeoutCause(ctx, hostPathLimit, fmt.Errorf("no answer within %s: %w", hostPathLimit, ErrTimeout))
	defer stop()
	cache, err := cdi.NewCache(cdi.WithSpecDirs(cdiDirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return nil, fmt.Errorf("cannot read the CDI specifications: %w", err)
	}
	var edits []cdispecs.ContainerEdits
	seen := map[*cdi.Spec]bool{}
	for _, name := range cdiNames(cfg) {
		device := cache.GetDevice(name)
		if device == nil {
			return nil, unknownCDI(cache, name)
		}
		spec := device.GetSpec()
		if !seen[spec] {
			seen[spec] = true
			edits = append(edits, spec.ContainerEdits)
		}
		edits = append(edits, device.Device.ContainerEdits)
	}
	for i := range edits {
		if err := c.completeNodes(ctx, &edits[i]); err != nil {
			return nil, err
		}
	}
	return edits, nil
}

func cdiNames(cfg *cri.ContainerConfig) (names []string) {
	for _, d := range cfg.GetCDIDevices() {
		if !slices.Contains(names, d.GetName()) {
			names = append(names, d.GetName())
		}
	}
	return names
}

// unknownCDI tells a device nobody knows from one whose specification is broken.
func unknownCDI(cache *cdi.Cache, name string) error {
	var broken []string
	for file, errs := range cache.GetErrors() {
		broken = append(broken, fmt.Sprintf("%s: %v", file, errs))
	}
	slices.Sort(broken)
	hint := ""
	if len(broken) > 0 {
		hint = "; specifications that cannot be used: " + strings.Join(broken, "; ")
	}
	return fmt.Errorf("config.CDI_devices: no specification in %s describes %q%s: %w", strings.Join(cdiDirs, " or "), name, hint, ErrInvalid)
}

// completeNodes looks at the device nodes whose numbers a specification leaves to the node.
func (c *creation) completeNodes(ctx context.Context, edits *cdispecs.ContainerEdits) error {
	nodes := make([]*cdispecs.DeviceNode, 0, len(edits.DeviceNodes))
	for _, given := range edits.DeviceNodes {
		n := *given
		if n.HostPath == "" {
			n.HostPath = n.Path
		}
		if n.Type == "" || (n.Type != "p" && n.Major == 0) {
			found, err := c.paths.Devices(ctx, n.HostPath)
			if err == nil && len(found) != 1 {
				err = fmt.Errorf("it is not a device")
			}
			if err != nil {
				return fmt.Errorf("config.CDI_devices: cannot find host device %s: %w", n.HostPath, err)
			}
			n.Type, n.Major, n.Minor = found[0].Kind, int64(found[0].Major), int64(found[0].Minor)
			if mode := os.FileMode(found[0].Mode); n.FileMode == nil {
				n.FileMode = &mode
			}
		}
		nodes = append(nodes, &n)
	}
	edits.DeviceNodes = nodes
	return nil
}
