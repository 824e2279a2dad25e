package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/evenkeel/evenkeel/cri/operator"
	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/sandbox"
)

// tools is the operator's service: what the command line needs beyond the CRI.
type tools struct{ s *Server }

var _ operator.Service = tools{}

func (t tools) Pull(ctx context.Context, req operator.PullRequest, progress func(operator.Progress)) (operator.Result, error) {
	if err := need("image", req.Image); err != nil {
		return operator.Result{}, err
	}
	platform, err := platformOf(req.Platform)
	if err != nil {
		return operator.Result{}, err
	}
	options := image.PullOptions{Platform: platform, Progress: report(progress)}
	if req.Auth != nil {
		auth := image.Auth(*req.Auth)
		options.Auth = &auth
	}
	img, err := t.s.Images.Pull(ctx, req.Image, options)
	if err != nil {
		return operator.Result{}, err
	}
	return resultOf(img), nil
}

func (t tools) Import(ctx context.Context, archive io.Reader, progress func(operator.Progress)) (operator.Result, error) {
	images, err := t.s.Images.Import(ctx, archive, report(progress))
	if err != nil {
		return operator.Result{}, err
	}
	return resultOf(images...), nil
}

func (t tools) Inventory(ctx context.Context) (operator.Inventory, error) {
	instance, err := json.Marshal(t.s.Instance)
	if err != nil {
		return operator.Inventory{}, fmt.Errorf("cannot describe this instance: %w", err)
	}
	inventory := operator.Inventory{Pods: []string{}, Containers: []string{}, Instance: instance}
	for _, pod := range t.s.Pods.List(nil) {
		inventory.Pods = append(inventory.Pods, pod.Id)
	}
	for _, container := range t.s.Containers.List(nil) {
		inventory.Containers = append(inventory.Containers, container.Id)
	}
	slices.Sort(inventory.Pods)
	slices.Sort(inventory.Containers)
	return inventory, nil
}

func (t tools) Gone(context.Context) (operator.Gone, error) {
	pods, err := json.Marshal(t.s.Pods.Gone())
	if err != nil {
		return operator.Gone{}, fmt.Errorf("cannot tell of pods that are gone: %w", err)
	}
	return operator.Gone{Pods: pods}, nil
}

func (t tools) CheckNetwork(ctx context.Context, req operator.CheckNetworkRequest) (operator.NetworkCheck, error) {
	if err := need("pod", req.Pod); err != nil {
		return operator.NetworkCheck{}, err
	}
	finding, err := t.s.Pods.CheckNetwork(ctx, req.Pod)
	switch {
	case err != nil:
		return operator.NetworkCheck{}, err
	case finding.Unknown != nil:
		return operator.NetworkCheck{Status: "unknown", Detail: finding.Unknown.Error()}, nil
	case finding.Broken != nil:
		return operator.NetworkCheck{Status: "broken", Detail: finding.Broken.Error()}, nil
	}
	return operator.NetworkCheck{Status: "ok"}, nil
}

// platformOf reads os/arch[/variant].
func platformOf(text string) (*ocispec.Platform, error) {
	if text == "" {
		return nil, nil
	}
	parts := strings.Split(text, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return nil, fmt.Errorf("cannot use platform %q: %w: it reads os/arch or os/arch/variant", text, sandbox.ErrInvalid)
	}
	platform := &ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		platform.Variant = parts[2]
	}
	return platform, nil
}

func report(progress func(operator.Progress)) func(image.Progress) {
	return func(p image.Progress) {
		progress(operator.Progress{Layer: p.Digest.String(), Phase: p.Phase, Done: p.Done, Total: p.Total})
	}
}

func resultOf(images ...*image.Image) operator.Result {
	result := operator.Result{Images: []operator.Image{}}
	for _, img := range images {
		result.Images = append(result.Images, operator.Image{ID: img.ID.String(), Tags: img.Tags, Digests: img.Digests, Size: img.Size})
	}
	return result
}
