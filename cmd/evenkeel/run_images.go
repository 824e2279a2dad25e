package main

import (
	"context"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/cri/operator"
)

// ensureImages makes sure that the engine has every image of the pod, and asks each for what its containers need to know.
func (r *podRun) ensureImages(ctx context.Context) (map[string]imageFacts, error) {
	images := map[string]imageFacts{}
	for _, c := range slices.Concat(r.pod.Spec.InitContainers, r.pod.Spec.Containers) {
		if _, known := images[c.Image]; known {
			continue
		}
		facts, err := r.ensureImage(ctx, c.Image, strictestPolicy(r.pod, c.Image, r.options.pull))
		if err != nil {
			return nil, err
		}
		images[c.Image] = facts
	}
	return images, nil
}

// strictness orders the policies of containers that share an image. Always is first, as in Kubernetes, where the container that
// asks for it pulls and the one that says Never takes what is there.
var strictness = []v1.PullPolicy{v1.PullAlways, v1.PullNever, v1.PullIfNotPresent}

// strictestPolicy is that of the container that asks for most: it may be any of those with this image.
func strictestPolicy(pod *v1.Pod, image, flag string) v1.PullPolicy {
	asked := map[v1.PullPolicy]bool{}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if c.Image == image {
			asked[pullPolicy(flag, c.ImagePullPolicy)] = true
		}
	}
	for _, policy := range strictness {
		if asked[policy] {
			return policy
		}
	}
	return v1.PullIfNotPresent
}

// pullPolicy is the flag's, else the container's, else IfNotPresent. (Kubernetes pulls a tag :latest always unless told
// otherwise; on one machine with imported images that would fail more often than it would help.)
func pullPolicy(flag string, container v1.PullPolicy) v1.PullPolicy {
	switch {
	case flag == "always":
		return v1.PullAlways
	case flag == "never":
		return v1.PullNever
	case flag == "missing" || container == "":
		return v1.PullIfNotPresent
	}
	return container
}

func (r *podRun) ensureImage(ctx context.Context, ref string, policy v1.PullPolicy) (imageFacts, error) {
	facts, err := r.imageFacts(ctx, ref)
	if err != nil || facts.ID != "" && policy != v1.PullAlways {
		return facts, err
	}
	if policy == v1.PullNever {
		return facts, fmt.Errorf("image %s is not there and must not be pulled: import it with `evenkeel import`, or allow --pull=missing", ref)
	}
	r.out.note("pulling %s", ref)
	if _, err := r.engine.pull(ctx, operator.PullRequest{Image: ref}, r.out.progress()); err != nil {
		return facts, err
	}
	facts, err = r.imageFacts(ctx, ref)
	if err == nil && facts.ID == "" {
		err = fmt.Errorf("image %s was pulled, but the engine does not know it now", ref)
	}
	return facts, err
}

// imageFacts of an image that is not there have no id.
func (e *engine) imageFacts(ctx context.Context, ref string) (imageFacts, error) {
	answer, err := e.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		return imageFacts{}, fmt.Errorf("cannot look up image %s: %w", ref, err)
	}
	if answer.Image == nil {
		return imageFacts{}, nil
	}
	facts := imageFacts{ID: answer.Image.Id, Username: answer.Image.Username}
	if answer.Image.Uid != nil {
		facts.UID = &answer.Image.Uid.Value
	}
	return facts, nil
}
