package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/cri/operator"
)

// imageRow is an image in `images --output json`.
type imageRow struct {
	ID      string   `json:"id"` // digest of the config
	Tags    []string `json:"tags"`
	Digests []string `json:"digests"`
	Size    uint64   `json:"size"` // bytes on disk
	Pinned  bool     `json:"pinned"`
	User    string   `json:"user,omitempty"`
	// What the CRI does not tell; zero from engines without the operator's service.
	Shared   int64      `json:"shared"` // bytes that other images need as well
	PulledAt *time.Time `json:"pulledAt,omitempty"`
	Artifact string     `json:"artifact,omitempty"` // type of an OCI artifact
}

func imagesCommand() *cobra.Command {
	var t tool
	var l list
	c := &cobra.Command{
		Use:   "images",
		Short: "List the images",
		Args:  noArgs,
		RunE:  listing(&t, &l, (*engine).imageRows, func(r imageRow) string { return r.ID }, imageTable),
	}
	l.register(c, "print whole ids, and digests")
	c.AddCommand(imagesExplainCommand())
	return t.register(c)
}

func (e *engine) imageRows(ctx context.Context) ([]imageRow, error) {
	answer, err := e.images.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("cannot list images: %w", err)
	}
	rows := make([]imageRow, len(answer.Images))
	for i, image := range answer.Images {
		rows[i] = imageRowOf(image)
	}
	if err := e.addUsage(ctx, rows); err != nil {
		return nil, err
	}
	slices.SortStableFunc(rows, func(a, b imageRow) int { return strings.Compare(a.name(), b.name()) })
	return rows, nil
}

// addUsage asks for what the CRI does not tell. Other engines do not know it.
func (e *engine) addUsage(ctx context.Context, rows []imageRow) error {
	usage, err := operator.Client{Conn: e.conn}.Usage(ctx)
	if status.Code(err) == codes.Unimplemented {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot list what images occupy: %w", err)
	}
	for _, u := range usage.Images {
		if i := slices.IndexFunc(rows, func(r imageRow) bool { return r.ID == u.ID }); i >= 0 {
			rows[i].Shared, rows[i].PulledAt, rows[i].Artifact = u.Shared, &u.PulledAt, u.Artifact
		}
	}
	return nil
}

func imageRowOf(i *cri.Image) imageRow {
	row := imageRow{
		ID: i.Id, Tags: append([]string{}, i.RepoTags...), Digests: append([]string{}, i.RepoDigests...),
		Size: i.Size, Pinned: i.Pinned, User: i.Username,
	}
	if i.Uid != nil {
		row.User = fmt.Sprint(i.Uid.Value)
	}
	return row
}

func (r imageRow) name() string {
	if len(r.Tags) > 0 {
		return r.Tags[0]
	}
	if len(r.Digests) > 0 {
		return r.Digests[0]
	}
	return ""
}

func imageTable(rows []imageRow, noTrunc bool, now time.Time) *table {
	t := &table{head: []string{"IMAGE", "TAG", "ID", "SIZE", "SHARED", "AGE"}}
	if noTrunc {
		t.head = append(t.head, "DIGEST")
	}
	for _, r := range rows {
		for _, name := range r.names() {
			repository, tag := splitTag(name)
			cells := []string{repository, tag, truncated(r.ID, noTrunc), byteCount(r.Size), "", ""}
			if r.PulledAt != nil {
				cells[4], cells[5] = byteCount(uint64(r.Shared)), age(*r.PulledAt, now)
			}
			if noTrunc {
				cells = append(cells, strings.Join(r.Digests, ","))
			}
			t.add(cells...)
		}
	}
	return t
}

// names is one line's worth each: every tag, or the repositories of the digests when no tag is left.
func (r imageRow) names() []string {
	if len(r.Tags) > 0 {
		return r.Tags
	}
	var names []string
	for _, d := range r.Digests {
		repository, _, _ := strings.Cut(d, "@")
		if !slices.Contains(names, repository) {
			names = append(names, repository)
		}
	}
	if names == nil {
		return []string{""}
	}
	return names
}

// splitTag parts a name at the colon that is not a port's.
func splitTag(name string) (repository, tag string) {
	i := strings.LastIndexByte(name, ':')
	if i < 0 || strings.Contains(name[i:], "/") {
		return name, ""
	}
	return name[:i], name[i+1:]
}
