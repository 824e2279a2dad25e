package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/evenkeel/evenkeel/cri/operator"
)

func fsckCommand() *cobra.Command {
	var t tool
	var repair bool
	c := &cobra.Command{
		Use:   "fsck",
		Short: "Read every image layer from disk and compare it with what was unpacked, while pods run",
		Long: "Read every image layer from disk and compare it with what was unpacked, while pods run.\n\n" +
			"Images with a damaged layer are no longer listed. With --repair that layer alone is fetched again; pods that stand on\n" +
			"the damaged one keep it until they are started again. Exit status 1: something is damaged or could not be repaired.",
		Args: noArgs,
		RunE: t.asking(func(c *cobra.Command, e *engine, _ []string) error {
			r, err := operator.Client{Conn: e.conn}.Check(c.Context(), operator.CheckRequest{Repair: repair})
			if err != nil {
				return unlessSaid("cannot check the images", err)
			}
			if t.json() {
				err = printJSON(c.OutOrStdout(), r)
			} else {
				printCheck(c.OutOrStdout(), r)
			}
			if err == nil && (len(r.Broken) > 0 || len(r.Damages) > 0 && !repair) {
				err = errors.New("damage was found; run evenkeel fsck --repair, or pull the images again")
			}
			return err
		}),
	}
	c.Flags().BoolVar(&repair, "repair", false, "fetch damaged layers again")
	return t.register(c)
}

func printCheck(w io.Writer, r operator.CheckResult) {
	fmt.Fprintf(w, "%d layers read, %s; %d damaged\n", r.Layers, byteCount(uint64(r.Bytes)), len(r.Damages))
	if len(r.Unverifiable) > 0 {
		fmt.Fprintf(w, "%d layers cannot be compared with anything (an entry of the archive replaced another, or an older release unpacked it)\n", len(r.Unverifiable))
	}
	for _, d := range r.Damages {
		fmt.Fprintf(w, "layer %s of %s\n  %s\n", shortID(d.Layer), strings.Join(d.Images, ", "), d.Reason)
		for _, p := range d.Pods {
			fmt.Fprintf(w, "  used by pod %s: start it again after the repair\n", p)
		}
	}
	for _, b := range r.Broken {
		fmt.Fprintf(w, "image %s lacks a layer and is not listed", b.Image)
		if b.Reason != "" {
			fmt.Fprintf(w, ": %s", b.Reason)
		}
		fmt.Fprintln(w)
	}
}
