package oci

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultTerm = "xterm"
)

// environment keeps variables in the order of their first mention; the last value wins.
type environment struct {
	order  []string
	values map[string]string
}

func (e *environment) set(key, value string) {
	if e.values == nil {
		e.values = map[string]string{}
	}
	if _, known := e.values[key]; !known {
		e.order = append(e.order, key)
	}
	e.values[key] = value
}

func (e *environment) setDefault(key, value string) {
	if _, known := e.values[key]; !known {
		e.set(key, value)
	}
}

func (e *environment) list() []string {
	list := make([]string, 0, len(e.order))
	for _, key := range e.order {
		list = append(list, key+"="+e.values[key])
	}
	return list
}

// env puts our defaults first, then the image's variables, then the request's.
func (in *Input) env() ([]string, error) {
	var e environment
	e.set("PATH", defaultPath)
	if in.Container.GetTty() {
		e.set("TERM", defaultTerm)
	}
	if name := in.hostname(); name != "" {
		e.set("HOSTNAME", name)
	}
	if err := in.imageEnv(&e); err != nil {
		return nil, err
	}
	if err := in.requestEnv(&e); err != nil {
		return nil, err
	}
	if in.User.Home != "" {
		e.setDefault("HOME", in.User.Home)
	}
	return e.list(), nil
}

func (in *Input) hostname() string {
	if name := in.Pod.GetHostname(); name != "" {
		return name
	}
	return in.Host.Hostname
}

func (in *Input) imageEnv(e *environment) error {
	for _, variable := range in.Image.Env {
		key, value, ok := strings.Cut(variable, "=")
		if !ok || key == "" {
			continue // not a variable; Docker's builder never writes one, and no process could see it
		}
		if err := checkVariable(key, value); err != nil {
			return fmt.Errorf("environment of image %s: %w", in.imageName(), err)
		}
		e.set(key, value)
	}
	return nil
}

func (in *Input) requestEnv(e *environment) error {
	for _, variable := range in.Container.GetEnvs() {
		key, value := variable.GetKey(), string(variable.GetValue())
		if key == "" {
			return fmt.Errorf("envs: a variable without a name (value %q)", value)
		}
		if err := checkVariable(key, value); err != nil {
			return fmt.Errorf("envs: %w", err)
		}
		e.set(key, value)
	}
	return nil
}

// checkVariable refuses what a process environment or the runtime's document cannot carry. The document is JSON, so a
// value that is no UTF-8 would arrive changed; saying so beats handing a workload a damaged secret.
func checkVariable(key, value string) error {
	switch {
	case strings.ContainsAny(key, "=\x00"):
		return fmt.Errorf("variable %q has '=' or a NUL byte in its name", key)
	case strings.ContainsRune(value, 0):
		return fmt.Errorf("the value of variable %s holds a NUL byte, which no process environment can carry", key)
	case !utf8.ValidString(key), !utf8.ValidString(value):
		return fmt.Errorf("variable %s is not UTF-8, and the OCI runtime's JSON document cannot carry other bytes", strings.ToValidUTF8(key, "?"))
	}
	return nil
}
