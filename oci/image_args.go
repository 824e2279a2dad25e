package oci

import (
	"fmt"
	"strings"
)

// args follows Kubernetes' table for command and args
// (kubernetes.io, "Define a Command and Arguments for a Container"): a command drops the image's CMD as well as its
// ENTRYPOINT, args alone replace CMD only.
func (in *Input) args() ([]string, error) {
	command, args := in.Container.GetCommand(), in.Container.GetArgs()
	if len(command) == 0 {
		command = in.Image.Entrypoint
		if len(args) == 0 {
			args = in.Image.Cmd
		}
	}
	// A new slice: appending to the request's would write into its memory.
	all := append(append([]string{}, command...), args...)
	if len(all) == 0 {
		return nil, fmt.Errorf("command: image %s has neither an entrypoint nor a command, and the request gives none", in.imageName())
	}
	for i, arg := range all {
		if strings.ContainsRune(arg, 0) {
			return nil, fmt.Errorf("command: argument %d holds a NUL byte, which no process can be given", i)
		}
	}
	return all, nil
}

func (in *Input) imageName() string {
	spec := in.Container.GetImage()
	if name := spec.GetUserSpecifiedImage(); name != "" {
		return name
	}
	return spec.GetImage()
}

// workingDir is absolute, as the runtime-spec wants it: images written by hand have relative ones, which count from the root.
func (in *Input) workingDir() string {
	dir := in.Container.GetWorkingDir()
	if dir == "" {
		dir = in.Image.WorkingDir
	}
	if !strings.HasPrefix(dir, "/") {
		dir = "/" + dir
	}
	return dir
}
