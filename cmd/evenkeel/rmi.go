package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// done is one object in the answers of rmi, stop and rm --output json.
type done struct {
	Kind string `json:"kind"` // pod, container or image
	ID   string `json:"id"`
	Name string `json:"name"`
}

func rmiCommand() *cobra.Command {
	var t tool
	c := &cobra.Command{
		Use:   "rmi IMAGE...",
		Short: "Remove images with all their tags and digests",
		Args:  cobra.MinimumNArgs(1),
		RunE: t.asking(func(c *cobra.Command, e *engine, refs []string) error {
			return t.each(c, refs, func(ref string) (done, error) { return e.removeImage(c.Context(), ref) })
		}),
	}
	return t.register(c)
}

// each does one thing to every reference, goes on past failures, and reports what was done.
func (t *tool) each(c *cobra.Command, refs []string, do func(ref string) (done, error)) error {
	results := []done{}
	var failed []error
	for _, ref := range refs {
		d, err := do(ref)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		results = append(results, d)
		if !t.json() {
			fmt.Fprintln(c.OutOrStdout(), d.Name)
		}
	}
	if t.json() {
		failed = append(failed, printJSON(c.OutOrStdout(), results))
	}
	return errors.Join(failed...)
}

// removeImage asks first, since CRI answers the removal of an image that never was with success.
func (e *engine) removeImage(ctx context.Context, ref string) (done, error) {
	i, broken, err := e.image(ctx, ref)
	if err != nil && broken == "" {
		return done{}, err
	}
	id := cmp.Or(broken, i.GetId())
	if _, err := e.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: id}}); err != nil {
		return done{}, fmt.Errorf("cannot remove image %s: %w", ref, err)
	}
	return done{"image", id, ref}, nil
}

// image looks one up. That there is none is no error in CRI, and one here; there may be a broken one, which only its id is told of.
func (e *engine) image(ctx context.Context, ref string) (i *cri.Image, broken string, err error) {
	answer, err := e.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}, Verbose: true})
	if err != nil {
		return nil, "", fmt.Errorf("cannot look up image %s: %w", ref, err)
	}
	if answer.Image != nil {
		return answer.Image, "", nil
	}
	var info struct{ Broken string }
	if json.Unmarshal([]byte(answer.Info["info"]), &info) == nil && info.Broken != "" {
		return nil, info.Broken, fmt.Errorf("image %s lacks a layer or has a damaged one; `evenkeel fsck --repair` fetches that again", ref)
	}
	return nil, "", fmt.Errorf("there is no image %s", ref)
}
