package main

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fields answers the fieldRefs that can be known on one machine.
type fields struct {
	pod *v1.Pod
	ips []string
}

// get returns the value of metadata.name and its like (the downward API).
func (f fields) get(path string) (string, error) {
	if value, known := subscript(path, "metadata.labels", f.pod.Labels); known {
		return value, nil
	}
	if value, known := subscript(path, "metadata.annotations", f.pod.Annotations); known {
		return value, nil
	}
	switch path {
	case "metadata.name":
		return f.pod.Name, nil
	case "metadata.namespace":
		return f.pod.Namespace, nil
	case "metadata.uid":
		return string(f.pod.UID), nil
	case "status.podIP", "status.podIPs":
		if f.pod.Spec.HostNetwork {
			return "", fmt.Errorf("%s: a pod on the host's network has no address of its own", path)
		}
		if path == "status.podIPs" {
			return strings.Join(f.ips, ","), nil
		}
		return append(f.ips, "")[0], nil
	}
	return "", fmt.Errorf("%q is not supported; known are metadata.name, metadata.namespace, metadata.uid, metadata.labels['…'], metadata.annotations['…'], status.podIP and status.podIPs", path)
}

// subscript reads metadata.labels['key'].
func subscript(path, field string, values map[string]string) (value string, known bool) {
	key, found := strings.CutPrefix(path, field+"['")
	if !found {
		return "", false
	}
	key, found = strings.CutSuffix(key, "']")
	return values[key], found
}

func validateEnv(at string, c *v1.Container, pod *v1.Pod) error {
	for i, e := range c.Env {
		at := fmt.Sprintf("%s.env[%d]", at, i)
		if problems := validation.IsEnvVarName(e.Name); len(problems) > 0 {
			return fmt.Errorf("%s.name: %s", at, problems[0])
		}
		switch {
		case e.ValueFrom == nil:
			continue
		case e.Value != "":
			return fmt.Errorf("%s: value and valueFrom exclude each other", at)
		case e.ValueFrom.FieldRef == nil:
			return fmt.Errorf("%s.valueFrom: names no source; known is fieldRef", at)
		}
		if version := e.ValueFrom.FieldRef.APIVersion; version != "" && version != "v1" {
			return fmt.Errorf("%s.valueFrom.fieldRef.apiVersion: %q is not v1", at, version)
		}
		if _, err := (fields{pod: pod}).get(e.ValueFrom.FieldRef.FieldPath); err != nil {
			return fmt.Errorf("%s.valueFrom.fieldRef.fieldPath: %w", at, err)
		}
	}
	return nil
}

// environment resolves a container's variables in order: each may use $(NAME) of those before it.
func environment(c *v1.Container, f fields) ([]*cri.KeyValue, map[string]string, error) {
	var list []*cri.KeyValue
	values := map[string]string{}
	for _, e := range c.Env {
		value := expand(e.Value, values)
		if e.ValueFrom != nil {
			var err error
			if value, err = f.get(e.ValueFrom.FieldRef.FieldPath); err != nil {
				return nil, nil, fmt.Errorf("variable %s of container %s: %w", e.Name, c.Name, err)
			}
		}
		values[e.Name] = value
		list = append(list, &cri.KeyValue{Key: e.Name, Value: []byte(value)})
	}
	return list, values, nil
}

func expandAll(words []string, values map[string]string) (expanded []string) {
	for _, w := range words {
		expanded = append(expanded, expand(w, values))
	}
	return expanded
}

// expand replaces $(NAME) as Kubernetes does: an unknown name stays as it is written, $$ is one dollar, and any other
// dollar stands for itself (k8s.io/kubernetes/third_party/forked/golang/expansion).
func expand(text string, values map[string]string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(text, "$")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		text = after
		switch {
		case strings.HasPrefix(after, "$"):
			b.WriteByte('$')
			text = after[1:]
		case strings.HasPrefix(after, "("):
			name, rest, closed := strings.Cut(after[1:], ")")
			if !closed {
				// Only this parenthesis is literal; a reference may still follow it.
				b.WriteString("$(")
				text = after[1:]
				continue
			}
			if value, known := values[name]; known {
				b.WriteString(value)
			} else {
				b.WriteString("$(" + name + ")")
			}
			text = rest
		default:
			b.WriteByte('$')
		}
	}
}
