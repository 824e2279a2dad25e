package sandbox

import (
	"context"
	"fmt"
	"strings"

	"github.com/evenkeel/evenkeel/image"
)

// checkProgram names a program that this machine cannot run while the container is made, when somebody reads the message.
// The kernel would say "exec format error", or that a file which is there does not exist.
func (c *creation) checkProgram(context.Context) error {
	spec := c.spec
	program := image.Program{Name: spec.Process.Args[0], Dir: spec.Process.Cwd}
	for _, variable := range spec.Process.Env {
		if value, ok := strings.CutPrefix(variable, "PATH="); ok {
			program.Path = value
		}
	}
	for _, m := range spec.Mounts {
		program.Hidden = append(program.Hidden, m.Destination)
	}
	if err := image.CheckExecutable(c.rootfs(), program); err != nil {
		return fmt.Errorf("cannot make container %q: %w", c.config.Metadata.Name, err)
	}
	return nil
}
