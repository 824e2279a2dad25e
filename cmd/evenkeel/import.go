package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/evenkeel/evenkeel/cri/operator"
)

func importCommand() *cobra.Command {
	var t tool
	c := &cobra.Command{
		Use:   "import ARCHIVE|-",
		Short: "Import the images of an OCI-layout or docker-save archive",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			archive, err := openArchive(args[0], c.InOrStdin())
			if err != nil {
				return err
			}
			defer archive.Close()
			e, err := t.connect(c.Context())
			if err != nil {
				return err
			}
			defer e.Close()
			show := newProgress(c.ErrOrStderr())
			result, err := operator.Client{Conn: e.conn}.Import(c.Context(), archive, show.update)
			show.finish()
			if err != nil {
				return unlessSaid("cannot import "+args[0], err)
			}
			images := []fetched{}
			for _, i := range result.Images {
				images = append(images, fetchedOf(i))
			}
			return t.printFetched(c.OutOrStdout(), images)
		},
	}
	return t.register(c)
}

func openArchive(name string, in io.Reader) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(in), nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("cannot open the archive: %w", err)
	}
	return f, nil
}
