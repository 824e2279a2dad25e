package sandbox

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fill sets every field of a message and of those in it to something, except those named.
func fill(m protoreflect.Message, except ...string) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case contains(except, string(f.Name())):
		case f.IsMap():
			m.Mutable(f).Map().Set(protoreflect.ValueOfString("k").MapKey(), protoreflect.ValueOfString("v"))
		case f.IsList() && f.Message() != nil:
			v := m.Mutable(f).List().NewElement()
			fill(v.Message(), except...)
			m.Mutable(f).List().Append(v)
		case f.IsList():
			m.Mutable(f).List().Append(scalar(f))
		case f.Message() != nil:
			fill(m.Mutable(f).Message(), except...)
		default:
			m.Set(f, scalar(f))
		}
	}
}

func contains(list []string, name string) bool {
	return strings.Contains(" "+strings.Join(list, " ")+" ", " "+name+" ")
}

func scalar(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("x")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("x"))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(7)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(7)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(7)
	}
	return protoreflect.ValueOfInt64(7)
}

// A field that a new cri-api adds to the resources must reach an update and its report.
func TestUpdateKeepsEveryField(t *testing.T) {
	want := &cri.LinuxContainerResources{}
	fill(want.ProtoReflect())
	got := merged(&cri.LinuxContainerResources{OomScoreAdj: want.OomScoreAdj}, completed(&cri.LinuxContainerResources{}, want))
	if !proto.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// unreported are fields of a container's status that it does not have, with the reason.
var unreported = map[string]string{
	"windows": "no Windows nodes",
}

// A field that a new cri-api adds to ContainerStatus, or to what is in it, must be filled or excused.
func TestEveryFieldOfTheStatus(t *testing.T) {
	cfg := &cri.ContainerConfig{}
	fill(cfg.ProtoReflect(), "windows")
	resources, user := &cri.LinuxContainerResources{}, &cri.ContainerUser{}
	fill(resources.ProtoReflect())
	fill(user.ProtoReflect(), "windows")
	r := containerRecord{
		ID: "i", PodID: "p", Config: document[*cri.ContainerConfig]{cfg}, LogPath: "/log", ImageID: "sha256:1", ImageRef: "ref",
		User: document[*cri.ContainerUser]{user}, StopSignal: 10, Resources: document[*cri.LinuxContainerResources]{resources},
		CreatedAt: time.Unix(1, 0), StartedAt: time.Unix(2, 0), FinishedAt: time.Unix(3, 0), Exit: exit{Code: 7, Reason: "Error", Message: "m"},
	}
	c := (&Pods{}).newContainer(r)
	var missing []string
	findUnset(c.status().ProtoReflect(), "", &missing)
	if len(missing) > 0 {
		t.Errorf("the status leaves these out; fill them or say why in unreported:\n  %s", strings.Join(missing, "\n  "))
	}
}

func findUnset(m protoreflect.Message, prefix string, missing *[]string) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if _, excused := unreported[string(f.Name())]; excused {
			continue
		}
		switch name := prefix + string(f.Name()); {
		case !m.Has(f):
			*missing = append(*missing, name)
		case f.IsList() && f.Message() != nil:
			findUnset(m.Get(f).List().Get(0).Message(), name+".", missing)
		case f.Message() != nil && !f.IsMap() && !f.IsList():
			findUnset(m.Get(f).Message(), name+".", missing)
		}
	}
}
