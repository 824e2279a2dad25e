package oci

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// elsewhere are fields that no decision of this package depends on, with the reason. A name covers what is below it.
var elsewhere = map[string]string{
	"metadata.attempt":             "part of the container's name, which the life of containers keeps",
	"labels":                       "echoed in lists and status, never interpreted",
	"annotations":                  "echoed in status; the CRI says they should not influence the runtime",
	"log_path":                     "opened by the shim",
	"stdin_once":                   "the shim closes stdin after the first attach",
	"stop_signal":                  "used by StopContainer",
	"windows":                      "no Windows nodes",
	"image.annotations":            "of the pull, not of the container",
	"image.image_ref":              "echoed in status",
	"image.runtime_handler":        "of the pull, not of the container",
	"mounts.image.annotations":     "of the pull, not of the container",
	"mounts.image.runtime_handler": "of the pull, not of the container",
}

// TestEveryFieldIsTested fails for a field of the CRI's container messages that no scene, no refusal and no entry of
// elsewhere sets, so that a new cri-api cannot bring a field which is silently ignored.
func TestEveryFieldIsTested(t *testing.T) {
	set := fieldsSet(t)
	var missing []string
	walkFields((&cri.ContainerConfig{}).ProtoReflect().Descriptor(), "", func(name string) {
		if !set[name] && !excused(name) {
			missing = append(missing, name)
		}
	})
	if len(missing) > 0 {
		t.Errorf("no test sets these fields of ContainerConfig; add a scene to testdata, a refusal, or a reason to elsewhere:\n  %s", strings.Join(missing, "\n  "))
	}
}

// An excuse for a field that is gone misleads.
func TestExcusesAreNeeded(t *testing.T) {
	known := map[string]bool{}
	walkFields((&cri.ContainerConfig{}).ProtoReflect().Descriptor(), "", func(name string) { known[name] = true })
	for name := range elsewhere {
		if !known[name] {
			t.Errorf("elsewhere excuses %s, which ContainerConfig does not have", name)
		}
	}
}

func excused(name string) bool {
	for prefix := range elsewhere {
		if name == prefix || strings.HasPrefix(name, prefix+".") {
			return true
		}
	}
	return false
}

// fieldsSet are the fields that any test input sets. A field at its zero value counts as not set: it decides nothing.
func fieldsSet(t *testing.T) map[string]bool {
	set := map[string]bool{}
	for _, file := range scenes(t) {
		markSet(readScene(t, file).input(t).Container.ProtoReflect(), "", set)
	}
	for i := range refusals {
		markSet(refusalScene(i).input(t).Container.ProtoReflect(), "", set)
	}
	return set
}

func markSet(m protoreflect.Message, prefix string, set map[string]bool) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		name := fieldName(prefix, field)
		set[name] = true
		switch {
		case field.Message() == nil || field.IsMap():
		case field.IsList():
			for i := range value.List().Len() {
				markSet(value.List().Get(i).Message(), name+".", set)
			}
		default:
			markSet(value.Message(), name+".", set)
		}
		return true
	})
}

// walkFields visits every field by its path. The messages have no cycles; the limit is for a future one.
func walkFields(d protoreflect.MessageDescriptor, prefix string, visit func(string)) {
	if strings.Count(prefix, ".") > 12 {
		panic(fmt.Sprintf("%s is nested too deeply: a cycle?", prefix))
	}
	for i := range d.Fields().Len() {
		field := d.Fields().Get(i)
		name := fieldName(prefix, field)
		visit(name)
		if field.Message() != nil && !field.IsMap() {
			walkFields(field.Message(), name+".", visit)
		}
	}
}

func fieldName(prefix string, field protoreflect.FieldDescriptor) string {
	return prefix + string(field.Name())
}
