package oci

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ExecProcess is the process document of an exec in a container whose spec is given: the same user, environment,
// directory and confinement as the container's first process. It shares no memory with the spec.
func ExecProcess(container *specs.Spec, command []string, tty bool) (*specs.Process, error) {
	if container == nil || container.Process == nil {
		return nil, errors.New("the container's document has no process to take an exec's settings from")
	}
	if len(command) == 0 {
		return nil, errors.New("cmd: an exec needs a command")
	}
	for i, arg := range command {
		if strings.ContainsRune(arg, 0) {
			return nil, fmt.Errorf("cmd: argument %d holds a NUL byte, which no process can be given", i)
		}
	}
	process := copyProcess(container.Process)
	process.Args, process.Terminal, process.ConsoleSize = slices.Clone(command), tty, nil
	if tty && !slices.ContainsFunc(process.Env, func(v string) bool { return strings.HasPrefix(v, "TERM=") }) {
		process.Env = append(process.Env, "TERM="+defaultTerm)
	}
	return process, nil
}

func copyProcess(from *specs.Process) *specs.Process {
	process := *from
	process.Env = slices.Clone(from.Env)
	process.Rlimits = slices.Clone(from.Rlimits)
	process.User.AdditionalGids = slices.Clone(from.User.AdditionalGids)
	if from.OOMScoreAdj != nil {
		score := *from.OOMScoreAdj
		process.OOMScoreAdj = &score
	}
	if caps := from.Capabilities; caps != nil {
		process.Capabilities = &specs.LinuxCapabilities{
			Bounding:    slices.Clone(caps.Bounding),
			Effective:   slices.Clone(caps.Effective),
			Inheritable: slices.Clone(caps.Inheritable),
			Permitted:   slices.Clone(caps.Permitted),
			Ambient:     slices.Clone(caps.Ambient),
		}
	}
	return &process
}
