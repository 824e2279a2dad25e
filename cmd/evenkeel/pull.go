package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/cri/operator"
)

// fetched is one image in pull, import and export --output json.
type fetched struct {
	Reference string   `json:"reference,omitempty"` // as it was asked for; not of import
	ID        string   `json:"id"`
	Tags      []string `json:"tags"`
	Digests   []string `json:"digests"`
	Size      int64    `json:"size"` // bytes on disk
}

func pullCommand() *cobra.Command {
	var t tool
	var platform, credentials string
	c := &cobra.Command{
		Use:   "pull IMAGE...",
		Short: "Pull images from their registries",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, refs []string) error {
			auth, err := readCredentials(credentials, c.InOrStdin())
			if err != nil {
				return err
			}
			e, err := t.connect(c.Context())
			if err != nil {
				return err
			}
			defer e.Close()
			images, failed := []fetched{}, []error{}
			for _, ref := range refs { // one that fails keeps none from the others, as with stop, rm and rmi
				image, err := e.pull(c.Context(), operator.PullRequest{Image: ref, Platform: platform, Auth: auth}, c.ErrOrStderr())
				if err != nil {
					failed = append(failed, err)
					continue
				}
				images = append(images, image)
			}
			return errors.Join(append(failed, t.printFetched(c.OutOrStdout(), images))...)
		},
	}
	c.Flags().StringVar(&platform, "platform", "", "os/arch[/variant] (default: this machine's)")
	c.Flags().StringVar(&credentials, "creds", "", "file with USER:PASSWORD, or - to read it from standard input; never the password itself, which `ps` would show")
	return t.register(c)
}

func readCredentials(name string, in io.Reader) (*operator.Auth, error) {
	var raw []byte
	var err error
	switch name {
	case "":
		return nil, nil
	case "-":
		raw, err = io.ReadAll(in)
	default:
		raw, err = os.ReadFile(name)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the credentials: %w", err)
	}
	user, password, found := strings.Cut(strings.TrimRight(string(raw), "\r\n"), ":")
	if !found {
		return nil, fmt.Errorf("the credentials are not of the form USER:PASSWORD")
	}
	return &operator.Auth{Username: user, Password: password}, nil
}

// pull fetches one image and shows how it goes. Engines without the operator's service are asked through CRI, in silence.
func (e *engine) pull(ctx context.Context, req operator.PullRequest, w io.Writer) (fetched, error) {
	show := newProgress(w)
	result, err := operator.Client{Conn: e.conn}.Pull(ctx, req, show.update)
	show.finish()
	if status.Code(err) == codes.Unimplemented && req.Platform == "" {
		return e.pullPlain(ctx, req)
	}
	if err != nil {
		return fetched{}, unlessSaid("cannot pull "+req.Image, err)
	}
	if len(result.Images) != 1 {
		return fetched{}, fmt.Errorf("cannot pull %s: the engine answered with %d images", req.Image, len(result.Images))
	}
	image := fetchedOf(result.Images[0])
	image.Reference = req.Image
	return image, nil
}

func (e *engine) pullPlain(ctx context.Context, req operator.PullRequest) (fetched, error) {
	request := &cri.PullImageRequest{Image: &cri.ImageSpec{Image: req.Image}}
	if req.Auth != nil {
		request.Auth = &cri.AuthConfig{Username: req.Auth.Username, Password: req.Auth.Password}
	}
	answer, err := e.images.PullImage(ctx, request)
	if err != nil {
		return fetched{}, unlessSaid("cannot pull "+req.Image, err)
	}
	return fetched{Reference: req.Image, ID: answer.ImageRef, Tags: []string{}, Digests: []string{}}, nil
}

func fetchedOf(i operator.Image) fetched {
	return fetched{ID: i.ID, Tags: append([]string{}, i.Tags...), Digests: append([]string{}, i.Digests...), Size: i.Size}
}

func (t *tool) printFetched(w io.Writer, images []fetched) error {
	if t.json() {
		return printJSON(w, images)
	}
	for _, i := range images {
		name := i.Reference
		if name == "" {
			name = strings.Join(i.Tags, " ")
		}
		fmt.Fprintf(w, "%s  %s\n", shortID(i.ID), name)
	}
	return nil
}
