package main

import (
	"context"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// versions is `version --output json`.
type versions struct {
	Client string         `json:"client"`
	Go     string         `json:"go"`
	Arch   string         `json:"arch"`
	Engine *engineVersion `json:"engine,omitempty"` // nil when no daemon answers
	Error  string         `json:"error,omitempty"`  // why not
}

type engineVersion struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	API     string `json:"api"`
	Address string `json:"address"`
}

func versionCommand() *cobra.Command {
	var t tool
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program and of the running engine",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			v := versions{Client: version, Go: runtime.Version(), Arch: runtime.GOARCH}
			if running, err := t.engineVersion(c.Context()); err == nil {
				v.Engine = running
			} else {
				v.Error = plain(err)
			}
			if t.json() {
				return printJSON(c.OutOrStdout(), v)
			}
			fmt.Fprintf(c.OutOrStdout(), "client  evenkeel %s (%s, %s)\n", v.Client, v.Go, v.Arch)
			if v.Engine == nil {
				fmt.Fprintf(c.OutOrStdout(), "engine  not reachable: %s\n", v.Error)
				return nil
			}
			fmt.Fprintf(c.OutOrStdout(), "engine  %s %s (CRI %s) at %s\n", v.Engine.Name, v.Engine.Version, v.Engine.API, v.Engine.Address)
			return nil
		},
	}
	return t.register(c)
}

func (t *tool) engineVersion(ctx context.Context) (*engineVersion, error) {
	e, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer e.Close()
	v, err := e.pods.Version(ctx, &cri.VersionRequest{Version: "0.1.0"})
	if err != nil {
		return nil, fmt.Errorf("cannot ask the engine for its version: %w", err)
	}
	return &engineVersion{v.RuntimeName, v.RuntimeVersion, v.RuntimeApiVersion, e.address}, nil
}
