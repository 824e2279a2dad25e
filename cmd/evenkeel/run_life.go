package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kubelet's limits for the same requests (runtimeRequestTimeout, and twice that for a sandbox).
const (
	requestLimit = 2 * time.Minute
	sandboxLimit = 4 * time.Minute
)

// restartLimit is how long a pod's run waits for a daemon that is away: a restart takes a second or two.
const restartLimit = 10 * time.Second

// podRun is one pod from its manifest to its end.
type podRun struct {
	*engine
	pod     *v1.Pod
	options runOptions
	out     *runOutput
	kill    <-chan struct{} // closes when the operator will not wait for a graceful end

	dir     podDir
	lock    *os.File // on dir, as long as this process runs the pod
	asked   bool     // for the sandbox: it may exist
	id      string   // of the sandbox; empty before it is known
	config  *cri.PodSandboxConfig
	at      place
	started []*startedContainer // in order
	crew    crew
}

type startedContainer struct {
	spec *v1.Container
	id   string // of the first attempt
	code int32  // of the last one, when its supervision has ended
}

// crew are the supervisors of containers.
type crew struct {
	following  context.Context // logs are followed through the stop
	restarting context.Context // ends when nothing is to be started again
	all        errgroup.Group
}

// run is the whole life. Whatever goes wrong, and at Ctrl-C, the pod goes with all that was made for it.
func (r *podRun) run(ctx context.Context) error {
	following, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	restarting, noMore := context.WithCancel(ctx)
	defer noMore()
	r.crew.following, r.crew.restarting = following, restarting
	err := r.up(ctx)
	if err != nil {
		noMore()
		err = errors.Join(err, r.remove(ctx))
		end()
		r.crew.all.Wait() // what became of sidecars says nothing about why the pod is not up
		if ctx.Err() != nil {
			return r.interrupted(err)
		}
		return err
	}
	r.out.podUp(r)
	if r.options.detach {
		noMore()
		end()
		r.crew.all.Wait()
		r.out.detached(r)
		return r.lock.Close()
	}
	code, err := r.live(ctx, noMore, end)
	switch {
	case ctx.Err() != nil:
		return r.interrupted(errors.Join(err, r.remove(ctx)))
	case r.options.remove:
		err = errors.Join(err, r.remove(ctx))
	default:
		r.out.note("pod %s has ended; see `evenkeel logs %s`, and remove it with `evenkeel rm %s`", podTitle(r.pod), r.pod.Name, r.pod.Name)
	}
	if err == nil && code != 0 {
		return exitCode(code)
	}
	return err
}

// interrupted turns what a cancelled context broke into the exit code of Ctrl-C; anything else is still told.
func (r *podRun) interrupted(err error) error {
	if err != nil && !onlyCancelled(err) {
		r.out.note("%s", plain(err))
	}
	return exitCode(130)
}

func podTitle(pod *v1.Pod) string { return pod.Namespace + "/" + pod.Name }

// up brings the pod to where all its containers have been started once.
func (r *podRun) up(ctx context.Context) error {
	if err := r.freeName(ctx); err != nil {
		return err
	}
	var err error
	if r.at.images, err = r.ensureImages(ctx); err != nil {
		return err
	}
	if err := r.makeDir(ctx); err != nil {
		return err
	}
	if err := r.runSandbox(ctx); err != nil {
		return err
	}
	for i := range r.pod.Spec.InitContainers {
		if err := r.runInit(ctx, &r.pod.Spec.InitContainers[i]); err != nil {
			return err
		}
	}
	for i := range r.pod.Spec.Containers {
		if err := r.startFirst(ctx, &r.pod.Spec.Containers[i]); err != nil {
			return err
		}
	}
	return nil
}

// freeName refuses a second pod of one name: nothing in the engine forbids it, but every later command would be ambiguous.
func (r *podRun) freeName(ctx context.Context) error {
	w, err := r.look(ctx)
	if err != nil {
		return err
	}
	for _, p := range w.pods {
		if podName(p) == podTitle(r.pod) {
			return fmt.Errorf("pod %s exists already (%s, %s): remove it with `evenkeel rm -f %s`, or give this one another name",
				podName(p), shortID(p.Id), podState(p.State), shortID(p.Id))
		}
	}
	return nil
}

// makeDir makes the pod's directory and volumes, after taking away what killed runs left behind.
func (r *podRun) makeDir(ctx context.Context) (err error) {
	base := r.runBase(ctx)
	if err := sweepPodDirs(base, func() (map[string]bool, error) { return r.uids(ctx) }); err != nil {
		r.out.note("%s", plain(err))
	}
	dir := podDir{base + "/" + string(r.pod.UID)}
	if r.lock, err = dir.create(dirOwner{string(r.pod.UID), podTitle(r.pod)}); err != nil {
		return err
	}
	r.dir, r.at.dir = dir, dir
	return prepareVolumes(r.pod, dir)
}

func (e *engine) uids(ctx context.Context) (map[string]bool, error) {
	answer, err := e.pods.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("cannot list pods: %w", err)
	}
	uids := map[string]bool{}
	for _, p := range answer.Items {
		uids[p.GetMetadata().GetUid()] = true
	}
	return uids, nil
}

// runSandbox is not cut short by Ctrl-C, nor are the other requests that make something: the engine would finish them, and
// their ids would be lost.
func (r *podRun) runSandbox(ctx context.Context) error {
	resolvConf, _ := os.ReadFile("/etc/resolv.conf") // without one, the manifest's servers are all there is
	nodeHosts, _ := os.ReadFile("/etc/hosts")
	r.config = sandboxConfig(r.pod, r.dir, string(resolvConf))
	detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), sandboxLimit)
	defer cancel()
	r.asked = true
	var answer *cri.RunPodSandboxResponse
	err := r.insist(detached, func() (err error) {
		answer, err = r.pods.RunPodSandbox(detached, &cri.RunPodSandboxRequest{Config: r.config})
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot run pod %s: %w", podTitle(r.pod), err)
	}
	r.id = answer.PodSandboxId
	if r.at.ips, err = r.addresses(detached, r.id); err != nil {
		return fmt.Errorf("cannot ask for the addresses of pod %s: %w", podTitle(r.pod), err)
	}
	if err := os.WriteFile(r.dir.hosts(), []byte(hostsFile(r.pod, r.at.ips, string(nodeHosts))), 0o644); err != nil {
		return fmt.Errorf("cannot write the pod's hosts file: %w", err)
	}
	r.out.sandboxUp(r)
	return ctx.Err()
}

// runInit runs an init container to its success, or starts it when it is a sidecar.
func (r *podRun) runInit(ctx context.Context, c *v1.Container) error {
	if isSidecar(c) {
		return r.startFirst(ctx, c)
	}
	var wait restartPause
	for attempt := uint32(0); ; attempt++ {
		id, err := r.start(ctx, c, attempt)
		if err != nil {
			return err
		}
		begun := time.Now()
		s, err := r.follow(ctx, c, id, attempt)
		if err != nil {
			return err
		}
		if s.ExitCode == 0 {
			return nil
		}
		if r.pod.Spec.RestartPolicy == v1.RestartPolicyNever {
			r.out.lastLines(c.Name, s.LogPath)
			return fmt.Errorf("init container %s %s", c.Name, ending(s))
		}
		pause := wait.next(time.Since(begun))
		r.out.note("init container %s %s, starting it again in %s", c.Name, ending(s), pause)
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// ending says how a container ended, for people.
func ending(s *cri.ContainerStatus) string {
	text := fmt.Sprintf("ended with exit code %d", s.ExitCode)
	if s.Reason != "" && s.Reason != "Completed" && s.Reason != "Error" {
		text += " (" + s.Reason + ")"
	}
	if s.Message != "" {
		text += ": " + s.Message
	}
	return text
}

func (r *podRun) startFirst(ctx context.Context, c *v1.Container) error {
	id, err := r.start(ctx, c, 0)
	if err != nil {
		return err
	}
	s := &startedContainer{spec: c, id: id}
	r.started = append(r.started, s)
	if isSidecar(c) { // at once: the init containers after it may wait for what it does, so it has to be started again, too
		r.supervised(s, func() {})
	}
	return nil
}

// start creates and starts one attempt of a container.
func (r *podRun) start(ctx context.Context, c *v1.Container, attempt uint32) (id string, err error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	config, err := containerConfig(r.pod, c, attempt, r.at)
	if err != nil {
		return "", err
	}
	if err := bindSubPaths(r.pod, c, r.dir); err != nil {
		return "", err
	}
	if err := os.MkdirAll(r.dir.logs()+"/"+c.Name, 0o755); err != nil {
		return "", fmt.Errorf("cannot make the log directory of container %s: %w", c.Name, err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestLimit)
	defer cancel()
	var made *cri.CreateContainerResponse
	err = r.insist(ctx, func() (err error) {
		made, err = r.pods.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: r.id, Config: config, SandboxConfig: r.config})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("cannot create container %s: %w", c.Name, err)
	}
	repeated := false
	err = r.insist(ctx, func() error {
		_, err := r.pods.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId})
		if repeated && status.Code(err) == codes.FailedPrecondition { // the first one did start it; its status tells what came of it
			return nil
		}
		repeated = true
		return err
	})
	if err != nil {
		return "", fmt.Errorf("cannot start container %s: %w", c.Name, err)
	}
	return made.ContainerId, nil
}

// follow shows the log of one attempt until it has ended, and returns how.
func (r *podRun) follow(ctx context.Context, c *v1.Container, id string, attempt uint32) (*cri.ContainerStatus, error) {
	ended := make(chan struct{})
	logged := make(chan error, 1)
	go func() {
		t := &tail{Path: fmt.Sprintf("%s/%s/%d.log", r.dir.logs(), c.Name, attempt), Lines: -1, Follow: true, Line: r.out.line(c.Name), Skipped: r.out.logs.skipped}
		logged <- t.run(ctx, ended)
	}()
	s, err := r.wait(ctx, id)
	close(ended)
	if failed := <-logged; failed != nil && !onlyCancelled(failed) {
		r.out.note("the log of container %s cannot be shown: %s", c.Name, failed)
	}
	if err == nil {
		r.out.exited(c.Name, s)
	}
	return s, err
}

// live supervises the containers until those that are no sidecars have ended, or the operator has had enough, and then
// stops what is left. It returns the exit code of the first container that failed.
func (r *podRun) live(ctx context.Context, noMore, end func()) (code int32, err error) {
	var proper sync.WaitGroup
	for _, s := range r.started {
		if !isSidecar(s.spec) {
			proper.Add(1)
			r.supervised(s, proper.Done)
		}
	}
	finished := make(chan struct{})
	go func() { proper.Wait(); close(finished) }()
	select {
	case <-finished:
	case <-ctx.Done():
		r.out.note("stopping pod %s; once more to kill it", podTitle(r.pod))
	}
	noMore()
	if err = r.stop(ctx); err != nil {
		end() // what could not be stopped may never end
		r.crew.all.Wait()
		if ctx.Err() != nil || r.options.remove {
			err = nil // the removal tries again, and tells
		}
		return r.firstFailure(), err
	}
	err = r.crew.all.Wait()
	return r.firstFailure(), err
}

func (r *podRun) supervised(s *startedContainer, done func()) {
	r.crew.all.Go(func() (err error) {
		defer done()
		s.code, err = r.supervise(r.crew.following, r.crew.restarting, s)
		return err
	})
}

func (r *podRun) firstFailure() int32 {
	for _, s := range r.started {
		if s.code != 0 && !isSidecar(s.spec) {
			return s.code
		}
	}
	return 0
}

// supervise follows a container through all its attempts. It starts no more once restarting has ended.
func (r *podRun) supervise(following, restarting context.Context, c *startedContainer) (code int32, err error) {
	var wait restartPause
	id, previous := c.id, ""
	for attempt := uint32(0); ; attempt++ {
		begun := time.Now()
		if id != "" {
			s, err := r.follow(following, c.spec, id, attempt)
			if err != nil {
				return 0, err
			}
			code = s.ExitCode
		}
		if restarting.Err() != nil || !r.restarts(c.spec, code) {
			return code, nil
		}
		pause := wait.next(time.Since(begun))
		r.out.note("starting container %s again in %s", c.spec.Name, pause)
		if sleep(restarting, pause) != nil {
			return code, nil
		}
		// One attempt before the running one is kept for its log.
		r.forget(following, c.spec, previous, attempt)
		previous = id
		if id, err = r.start(restarting, c.spec, attempt+1); err != nil {
			if restarting.Err() != nil {
				return code, nil
			}
			r.out.note("%s", plain(err))
			code = startFailed
		}
	}
}

// startFailed stands for the exit code of a container that could not be started, as in the shell.
const startFailed = 128

// forget removes an attempt that nobody will ask about any more. A failure only leaves it to the pod's removal.
func (r *podRun) forget(ctx context.Context, c *v1.Container, id string, attempt uint32) {
	if id == "" {
		return
	}
	if _, err := r.pods.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id}); err == nil {
		os.Remove(fmt.Sprintf("%s/%s/%d.log", r.dir.logs(), c.Name, attempt-1))
	}
}

func (r *podRun) restarts(c *v1.Container, code int32) bool {
	switch {
	case isSidecar(c):
		return true
	case r.pod.Spec.RestartPolicy == v1.RestartPolicyOnFailure:
		return code != 0
	}
	return r.pod.Spec.RestartPolicy == v1.RestartPolicyAlways
}

// stop stops the containers with their grace, or at once when the operator asks again. A nil error means that nothing of the
// pod runs, and that its network is released.
func (r *podRun) stop(ctx context.Context) error {
	grace := time.Duration(*r.pod.Spec.TerminationGracePeriodSeconds) * time.Second
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace+sandboxLimit)
	defer cancel()
	polite, hurry := context.WithCancel(ctx)
	defer hurry()
	go func() {
		select {
		case <-r.kill:
			hurry()
		case <-polite.Done():
		}
	}()
	if err := r.await(ctx); err != nil {
		return fmt.Errorf("pod %s is left as it is, to be removed with `evenkeel rm -f %s`: %w", podTitle(r.pod), shortID(r.id), err)
	}
	w, err := r.look(ctx)
	if err != nil {
		return err
	}
	err = r.stopPod(polite, w, r.id, graceFlag{})
	if isClosed(r.kill) {
		err = r.stopPod(ctx, w, r.id, graceFlag{set: true})
	}
	return err
}

// await returns when the daemon answers, which it may not just now: it may have restarted since it was asked last, and the
// connection would be given up at once.
func (r *podRun) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, restartLimit)
	defer cancel()
	if _, err := r.pods.Version(ctx, &cri.VersionRequest{}, grpc.WaitForReady(true)); err != nil {
		return fmt.Errorf("the engine at %s does not answer: %w", r.address, err)
	}
	return nil
}

// insist sends a request again whose answer was lost with the daemon, when one is back. The engine finishes or undoes what was begun,
// and answers the repeated request with what was made. An engine can answer Unavailable itself, of a shim that is silent, so the
// tries are few.
func (r *podRun) insist(ctx context.Context, request func() error) error {
	err := request()
	end := time.Now().Add(restartLimit)
	for pause := 100 * time.Millisecond; status.Code(err) == codes.Unavailable && time.Now().Before(end); pause *= 2 {
		if sleep(ctx, pause) != nil {
			return err
		}
		if away := r.await(ctx); away != nil {
			return errors.Join(err, away)
		}
		err = request()
	}
	return err
}

// adopt finds the pod whose making was not answered. A nil error means that r.id is that pod, or that there is none.
func (r *podRun) adopt(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestLimit)
	defer cancel()
	err := r.await(ctx)
	if err == nil {
		var answer *cri.ListPodSandboxResponse
		answer, err = r.pods.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
		for _, p := range answer.GetItems() {
			if p.GetMetadata().GetUid() == string(r.pod.UID) {
				r.id = p.Id
			}
		}
	}
	if err != nil {
		return fmt.Errorf("cannot tell whether pod %s was made (see `evenkeel pods`); %s is left for it: %w", podTitle(r.pod), r.dir.Path, err)
	}
	return nil
}

// remove stops the pod and takes away all that was made for it. It is safe at any time and more than once.
func (r *podRun) remove(ctx context.Context) error {
	if r.lock != nil {
		defer r.lock.Close()
	}
	if r.asked && r.id == "" {
		if err := r.adopt(ctx); err != nil {
			return err
		}
	}
	if r.id != "" {
		if err := r.stop(ctx); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestLimit)
		defer cancel()
		if _, err := r.pods.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: r.id}); err != nil {
			return fmt.Errorf("cannot remove pod %s: %w", podTitle(r.pod), err)
		}
		r.out.removed(r)
	}
	if r.dir.Path == "" {
		return nil
	}
	return r.dir.remove()
}
