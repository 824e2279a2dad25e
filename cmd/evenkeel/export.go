package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/evenkeel/evenkeel/cri/operator"
)

func exportCommand() *cobra.Command {
	var t tool
	var to, compression string
	c := &cobra.Command{
		Use:   "export IMAGE... --to ARCHIVE|-",
		Short: "Write images to an archive that is an OCI layout and loads with docker as well",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, refs []string) error {
			switch {
			case to == "-" && t.json():
				return errors.New("--output json goes to standard output, and so does the archive; name a file with --to")
			case to == "-" && terminalOf(c.OutOrStdout()) != nil:
				return errors.New("an archive is nothing for a terminal; name a file with --to")
			}
			// Ctrl-C must not leave the half of an archive beside the name that was asked for.
			ctx, end := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
			defer end()
			e, err := t.connect(ctx)
			if err != nil {
				return err
			}
			defer e.Close()
			images, err := e.export(ctx, refs, to, compression, c.OutOrStdout())
			switch {
			case ctx.Err() != nil:
				return exitCode(130)
			case err != nil:
				return unlessSaid("cannot export "+strings.Join(refs, ", "), err)
			case t.json():
				return printJSON(c.OutOrStdout(), images)
			}
			return nil
		},
	}
	c.Flags().StringVar(&to, "to", "-", "file, replaced when the archive is whole, or a pipe or device; -: standard output")
	c.Flags().StringVar(&compression, "compress", "", "gzip or zstd (default: neither)")
	return t.register(c)
}

// export names images by their ids to the engine: what a tag means can change meanwhile, and the answer is to tell what is in the
// archive.
func (e *engine) export(ctx context.Context, refs []string, to, compression string, out io.Writer) (images []fetched, err error) {
	req := operator.ExportRequest{Compression: compression}
	for _, ref := range refs {
		i, _, err := e.image(ctx, ref)
		if err != nil {
			return nil, err
		}
		images = append(images, fetched{Reference: ref, ID: i.Id, Tags: append([]string{}, i.RepoTags...), Digests: append([]string{}, i.RepoDigests...), Size: int64(i.Size)})
		req.Images = append(req.Images, i.Id)
	}
	return images, writeArchive(to, out, func(w io.Writer) error { return operator.Client{Conn: e.conn}.Export(ctx, req, w) })
}

// writeArchive leaves no half archive under the name that was asked for. A pipe, a device or a link such as /dev/stdout is written
// to: a file must not take its place.
func writeArchive(to string, out io.Writer, write func(io.Writer) error) error {
	if to == "-" {
		return write(out)
	}
	if info, err := os.Lstat(to); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(to, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(to), ".export-*")
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), to)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
