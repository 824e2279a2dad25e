package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/evenkeel/evenkeel/cri/operator"
)

func imagesExplainCommand() *cobra.Command {
	var t tool
	var credentials string
	c := &cobra.Command{
		Use:   "explain IMAGE",
		Short: "Show which hosts a pull would ask, in which order, how, and what they answer",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			auth, err := readCredentials(credentials, c.InOrStdin())
			if err != nil {
				return err
			}
			e, err := t.connect(c.Context())
			if err != nil {
				return err
			}
			defer e.Close()
			x, err := operator.Client{Conn: e.conn}.Explain(c.Context(), operator.PullRequest{Image: args[0], Auth: auth})
			if err != nil {
				return unlessSaid("cannot explain "+args[0], err)
			}
			if t.json() {
				return printJSON(c.OutOrStdout(), x)
			}
			printExplanation(c.OutOrStdout(), x)
			return nil
		},
	}
	c.Flags().StringVar(&credentials, "creds", "", "file with USER:PASSWORD, or - to read it from standard input")
	return t.register(c)
}

func printExplanation(w io.Writer, x operator.Explanation) {
	here := "not here"
	if x.Here {
		here = "here already"
	}
	fmt.Fprintf(w, "%s for %s, %s\n", x.Reference, x.Platform, here)
	if x.HostsFile == "" {
		fmt.Fprintln(w, "no hosts.toml is configured for its registry, nor a _default")
	} else {
		fmt.Fprintf(w, "hosts from %s\n", x.HostsFile)
	}
	if x.Error != "" {
		fmt.Fprintf(w, "error: %s\n", x.Error)
	}
	for i, h := range x.Hosts {
		kind := "registry"
		if h.Mirror {
			kind = "mirror"
		}
		fmt.Fprintf(w, "%d. %s  %s for %s\n", i+1, h.URL, kind, strings.Join(h.Capabilities, " and "))
		fmt.Fprintf(w, "   TLS: %s\n   credentials: %s\n", h.TLS, h.Credentials)
		if len(h.Headers) > 0 {
			fmt.Fprintf(w, "   headers: %s\n", strings.Join(h.Headers, ", "))
		}
		if h.Error != "" {
			fmt.Fprintf(w, "   failed after %.0f ms: %s\n", h.Milliseconds, h.Error)
		} else {
			fmt.Fprintf(w, "   answered in %.0f ms: %s\n", h.Milliseconds, h.Digest)
		}
	}
}
