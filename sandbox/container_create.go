package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/internal/effect"
	"github.com/evenkeel/evenkeel/oci"
	"github.com/evenkeel/evenkeel/oci/runc"
	"github.com/evenkeel/evenkeel/shim"
)

// The effects of making a container, in order.
var (
	containerRecordIntent = effect.New("container.record")
	containerRootfs       = effect.New("container.rootfs")
	containerHostPaths    = effect.New("container.hostpaths")
	containerBundle       = effect.New("container.bundle")
	containerCreate       = effect.New("container.create")
	containerCreated      = effect.New("container.created")
)

var errContainerStopped = errors.New("the container was stopped meanwhile")

// A creation is a container that is being made, with what is known only while it is made, in the order in which its steps find it out.
type creation struct {
	*container
	pod    *pod
	config *cri.ContainerConfig

	label     string // SELinux's, for what is mounted for the container alone; empty where SELinux is off
	image     *image.Image
	volumes   map[int]image.Volume // the request's mounts that are images, by their number
	shown     map[string]string    // where those are mounted in the state directory, by container_path
	hostPaths map[string]string    // the request's host paths, symlinks resolved
	spec      *specs.Spec
	process   shim.Process
	fault     startFault
}

func (p *pod) creation(c *container) *creation {
	return &creation{container: c, pod: p, config: c.facts().Config.Message}
}

// build makes the container, or leaves nothing of it.
func (c *container) build(ctx context.Context, pod *pod) {
	limit := max(containerBuildLimit, 2*c.createLimit())
	ctx, stop := context.WithTimeoutCause(ctx, limit, fmt.Errorf("container %s is not made after %s", c.id, limit))
	defer stop()
	ctx, end := c.whileWanted(ctx, 0)
	defer end()
	ctx, told := c.timeline.begin(ctx, "CreateContainer", containerCreated)
	err := pod.creation(c).make(ctx)
	if err != nil {
		c.doing.set("it failed (%v), and what there is of it is being removed", err)
		err = errors.Join(err, c.teardown(ctx))
	} else if c.facts().StartFault == "" {
		go c.watch()
	}
	told(err)
	if c.gone {
		c.bequeath()
	}
	c.built.end(err)
	c.turn.give()
}

func (c *creation) make(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		c.check, c.findImage, c.findVolumes, c.recordIntent, c.mountRootfs, c.mountVolumes,
		c.decide, c.checkProgram, c.writeBundle, c.create, c.checkTarget, c.recordCreated,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	c.tellPlugins(ctx, ContainerCreated)
	return nil
}

// check refuses what no step could make, and containers in a pod that is not READY. The container is in the index by then, so a Stop
// that comes later finds it.
func (c *creation) check(context.Context) (err error) {
	name := c.config.Metadata.Name
	if !c.pod.facts().ready() {
		return fmt.Errorf("cannot make container %q: pod %s is not ready: %w", name, c.podID, ErrState)
	}
	if c.pod.silent.Load() {
		return fmt.Errorf("cannot make container %q: the shim of pod %s does not answer: %w", name, c.podID, ErrUnknownState)
	}
	if _, err := c.logPolicy(); err != nil {
		return fmt.Errorf("cannot make container %q: %w", name, err)
	}
	if err := checkStopSignal(c.config.GetStopSignal()); err != nil {
		return fmt.Errorf("cannot make container %q: %w", name, err)
	}
	sandbox := c.pod.facts().Config.Message.GetLinux().GetSecurityContext()
	if c.config.GetLinux().GetSecurityContext().GetPrivileged() && !sandbox.GetPrivileged() {
		return fmt.Errorf("config.linux.security_context.privileged: pod %s is not privileged, so its containers cannot be: %w", c.podID, ErrInvalid)
	}
	c.label, err = c.mountLabel()
	return err
}

// findImage enters the layers of the container's image into the record, which protects them from removal.
func (c *creation) findImage(context.Context) error {
	want, name := c.config.GetImage().GetImage(), c.config.Metadata.Name
	if want == "" {
		return fmt.Errorf("config.image.image of container %q is empty: %w", name, ErrInvalid)
	}
	img, err := c.Images.Find(want)
	if err != nil {
		return fmt.Errorf("cannot make container %q: %w", name, err)
	}
	next := *c.facts()
	next.ImageID, next.ImageRef, next.Layers = img.ID.String(), img.ID.String(), img.Layers
	if len(img.Digests) > 0 {
		next.ImageRef = img.Digests[0]
	}
	next.ImageName = imageName(c.config.GetImage(), img)
	c.record.Store(&next)
	// From here on the layers are in use. Had the image been removed between the look-up and this, some might be gone.
	if _, err := c.Images.Find(want); err != nil {
		return fmt.Errorf("cannot make container %q: its image was removed meanwhile: %w", name, err)
	}
	c.image = img
	return nil
}

// imageName is the name that was asked for, written out, if the image has it, else one that it has. The kubelet asks for the id
// and says in user_specified_image what the pod says.
func imageName(asked *cri.ImageSpec, img *image.Image) string {
	names := slices.Concat(img.Tags, img.Digests)
	for _, given := range []string{asked.GetUserSpecifiedImage(), asked.GetImage()} {
		if ref, err := image.ParseReference(given); err == nil && slices.Contains(names, ref.String()) {
			return ref.String()
		}
	}
	if len(names) > 0 {
		return names[0]
	}
	return asked.GetImage()
}

func (c *creation) recordIntent(ctx context.Context) error {
	c.claimProject()
	err := containerRecordIntent.Do(ctx, func() error {
		if err := os.MkdirAll(c.containerRoot(c.id), 0o700); err != nil {
			return err
		}
		return writeRecord(c.containerRoot(c.id), c.facts())
	})
	if err != nil {
		return fmt.Errorf("cannot record container %s: %w", c.id, err)
	}
	return nil
}

func (c *creation) mountRootfs(ctx context.Context) error {
	return containerRootfs.Do(ctx, func() error {
		if err := os.MkdirAll(c.stateDir(), 0o711); err != nil {
			return err
		}
		root := image.Rootfs{
			Layers: c.image.Layers, Target: c.rootfs(), IDMap: c.pod.idMap(), Label: c.label,
			Upper: filepath.Join(c.containerRoot(c.id), "upper"), Work: filepath.Join(c.containerRoot(c.id), "work"),
			Project:  c.facts().Project,
			Volatile: true, // the layer ends with this boot, and unmounting it must not sync the disk of everybody else
		}
		if err := root.Mount(ctx); err != nil {
			return fmt.Errorf("cannot mount the root file system of container %s: %w", c.id, err)
		}
		return nil
	})
}

// decide gathers what the decision depends on, lets oci decide, and plugins change it.
func (c *creation) decide(ctx context.Context) error {
	in, err := c.gather(ctx)
	if err != nil {
		return err
	}
	if c.spec, err = oci.ContainerSpec(in); err != nil {
		return refused(err)
	}
	if err := c.consult(ctx, in); err != nil {
		return err
	}
	if err := c.relabel(ctx); err != nil {
		return err
	}
	c.annotate()
	for _, clamp := range oci.Clamps(in) {
		c.Log.Warn("a request was clamped to what this machine grants", "container", c.id, "clamp", clamp)
	}
	return nil
}

func (c *creation) gather(ctx context.Context) (in oci.Input, err error) {
	in = oci.Input{
		ID: c.id, PodID: c.podID, Container: c.config, Pod: c.pod.facts().Config.Message, Image: c.image.Config.Config, Rootfs: c.rootfs(),
		Cgroup: c.specCgroup(), Mounts: c.pod.engineMounts(c.config.GetLinux().GetSecurityContext().GetReadonlyRootfs()), ImageVolumes: c.shown,
		Host: c.pod.host(),
	}
	if in.User, err = c.user(); err != nil {
		return in, fmt.Errorf("cannot make container %q: %w: %w", c.config.Metadata.Name, err, ErrInvalid)
	}
	if in.Namespaces, err = c.joined(); err != nil {
		return in, err
	}
	if c.hostPaths, err = c.findHostPaths(ctx); err != nil {
		return in, err
	}
	in.HostPaths = c.hostPaths
	if in.Devices, err = c.findDevices(ctx); err != nil {
		return in, err
	}
	if in.CDI, err = c.findCDI(ctx, c.config); err != nil {
		return in, err
	}
	in.Host.AppArmorProfile = c.appArmor(ctx)
	in.Host.LocalhostSeccomp = func(path string) ([]byte, error) { return c.readProfile(ctx, path) }
	return in, nil
}

// refused keeps oci's words at the front, since the kubelet matches some by prefix (RROUnsupported), and adds what kind of refusal it is.
func refused(err error) error {
	if errors.Is(err, oci.ErrUnsupported) {
		return fmt.Errorf("%w: %w", err, ErrUnsupported)
	}
	return fmt.Errorf("%w: %w", err, ErrInvalid)
}

// containerUser is the user of the document, which vendors of devices and plugins have had their say on.
func containerUser(u specs.User) *cri.ContainerUser {
	linux := &cri.LinuxContainerUser{Uid: int64(u.UID), Gid: int64(u.GID)}
	for _, group := range u.AdditionalGids {
		linux.SupplementalGroups = append(linux.SupplementalGroups, int64(group))
	}
	return &cri.ContainerUser{Linux: linux}
}

// joined lists the namespaces that the container shares with its pod or with the container it targets.
func (c *creation) joined() (map[specs.LinuxNamespaceType]string, error) {
	o, files := c.config.GetLinux().GetSecurityContext().GetNamespaceOptions(), c.pod.namespaces()
	if o.GetPid() != cri.NamespaceMode_POD {
		delete(files, specs.PIDNamespace)
	}
	if o.GetPid() == cri.NamespaceMode_TARGET {
		target, err := (&Containers{c.Pods}).running(o.GetTargetId())
		if err != nil {
			return nil, fmt.Errorf("config.linux.security_context.namespace_options.target_id: %w", err)
		}
		if target.podID != c.podID {
			return nil, fmt.Errorf("config.linux.security_context.namespace_options.target_id: container %s belongs to another pod: %w", target.id, ErrInvalid)
		}
		files[specs.PIDNamespace] = fmt.Sprintf("/proc/%d/ns/pid", target.facts().Process.PID)
	}
	return files, nil
}

// checkTarget comes after the runtime has opened the target's namespace by its pid: had the target ended before, the pid
// could have been another process's by then. Nothing of the image has run yet.
func (c *creation) checkTarget(context.Context) error {
	o := c.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if o.GetPid() != cri.NamespaceMode_TARGET {
		return nil
	}
	target, err := c.index.container(o.GetTargetId())
	if err != nil || !target.facts().Process.Alive() {
		return fmt.Errorf("config.linux.security_context.namespace_options.target_id: container %s ended while a container was made beside it: %w", o.GetTargetId(), ErrState)
	}
	return nil
}

func (c *creation) writeBundle(ctx context.Context) error {
	return containerBundle.Do(ctx, func() error {
		data, err := json.Marshal(c.spec)
		if err != nil {
			return fmt.Errorf("cannot encode the spec of container %s: %w", c.id, err)
		}
		return os.WriteFile(filepath.Join(c.stateDir(), "config.json"), data, 0o600)
	})
}

// readBundle returns the runtime-spec document the container was made with.
func (c *container) readBundle() (*specs.Spec, error) {
	data, err := os.ReadFile(filepath.Join(c.stateDir(), "config.json"))
	if err != nil {
		return nil, fmt.Errorf("cannot read the spec of container %s: %w", c.id, err)
	}
	spec := &specs.Spec{}
	return spec, json.Unmarshal(data, spec)
}

// startFault is an entrypoint that cannot be executed.
type startFault struct {
	message string
	code    int
}

// create lets the shim run the runtime's create. An entrypoint that cannot be executed is kept for Start to report.
func (c *creation) create(ctx context.Context) (err error) {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	request := shim.CreateRequest{
		ID: c.id, Bundle: c.stateDir(), LogPath: c.facts().LogPath,
		TTY: c.config.GetTty(), Stdin: c.config.GetStdin(), StdinOnce: c.config.GetStdinOnce(), Owner: c.pod.owner(),
	}
	if request.Log, err = c.logPolicy(); err != nil {
		return err
	}
	if dir := c.Cgroups.MemoryDir(c.facts().Cgroup); dir != "" {
		request.Cgroup = []string{dir}
	}
	err = c.runtimeCreate(ctx, func(ctx context.Context) (err error) {
		if c.process, err = c.shim().Create(ctx, request); err != nil {
			return err
		}
		return c.keepLimits(ctx)
	})
	if code, ok := runc.ErrExecutable(err); ok {
		c.fault = startFault{err.Error(), code}
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot create container %q (%s): %w", c.config.Metadata.Name, c.id, err)
	}
	return nil
}

func (c *creation) recordCreated(ctx context.Context) error {
	return c.note(ctx, containerCreated, func(r *containerRecord) {
		r.Process, r.CreatedAt, r.StopSignal = c.process, time.Now(), stopSignal(c.config, c.image)
		r.User.Message, r.StartFault, r.StartCode = containerUser(c.spec.Process.User), c.fault.message, c.fault.code
	})
}
