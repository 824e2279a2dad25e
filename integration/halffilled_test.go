package integration

import (
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
)

// TestHalfFilledRequests sends each call of the CRI messages of which any part can be missing. Whatever it answers, the engine
// lives on, and what it made of them can be removed.
func TestHalfFilledRequests(t *testing.T) {
	n := start(t, "builtin")
	pod, container := n.up("whole")
	conn, err := engine.Dial(n.Socket())
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	pid, seed := n.PID(), time.Now().UnixNano()
	t.Logf("seed %d", seed)
	f := &filler{Rand: rand.New(rand.NewPCG(uint64(seed), 1)), pod: pod, container: container, strings: map[string][]string{
		"image": {busybox}, "pod_sandbox_id": {nobody, pod}, "container_id": {nobody, container}, "target_id": {nobody, container},
		"host_path": {t.TempDir(), "/dev/null"}, "container_path": {"/", "/data", "data/.."}, "cmd": {"true"}, "command": {"true"}, "runtime_handler": {"", "x"},
		"log_directory": {n.LogDir()}, "log_path": {"x.log"}, "cgroup_parent": {""}, "pod_cidr": {"x"},
	}}
	answers := map[codes.Code]int{}
	file, err := protoregistry.GlobalFiles.FindDescriptorByName("runtime.v1.RuntimeService")
	must(t, err)
	services := file.ParentFile().Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for k := range methods.Len() {
			for round := range engine.Rounds(12, 4) {
				req := f.request(methods.Get(k), round)
				code := send(conn, methods.Get(k), req)
				if answers[code]++; n.Ended() || n.PID() != pid {
					t.Fatalf("the engine ended over %s %s", methods.Get(k).Name(), protojson.Format(req))
				}
			}
		}
	}
	t.Logf("answers: %v", answers)
	if answers[codes.OK] < 20 || answers[codes.InvalidArgument] < 20 {
		t.Errorf("requests that are all alike test nothing: %v", answers)
	}
	if answers[codes.Unavailable] > 0 {
		t.Error("the engine was away")
	}
}

// send makes one call, and reads the whole of a streamed answer, for a moment.
func send(conn *grpc.ClientConn, method protoreflect.MethodDescriptor, req proto.Message) codes.Code {
	ctx, end := context.WithTimeout(context.Background(), engine.Patience(20*time.Second))
	defer end()
	path := "/" + string(method.Parent().FullName()) + "/" + string(method.Name())
	answer := messageOf(method.Output())
	if !method.IsStreamingServer() {
		return status.Code(conn.Invoke(ctx, path, req, answer))
	}
	if method.Name() == "GetContainerEvents" { // it has no end
		ctx, end = context.WithTimeout(ctx, 100*time.Millisecond)
		defer end()
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, path)
	if err == nil {
		err = stream.SendMsg(req)
	}
	for err == nil {
		err = stream.RecvMsg(answer)
	}
	if err == io.EOF {
		return codes.OK
	}
	return status.Code(err)
}

func messageOf(d protoreflect.MessageDescriptor) proto.Message {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err)
	}
	return kind.New().Interface()
}

// filler makes messages up.
type filler struct {
	*rand.Rand
	pod, container string              // which live
	strings        map[string][]string // by the names of fields
}

// request has nothing at first, and then some or most fields. Every other one has what a request cannot do without, so that what
// comes after the first check is reached as well. No image is removed and nothing is ended that others need.
func (f *filler) request(method protoreflect.MethodDescriptor, round int) proto.Message {
	req := messageOf(method.Input())
	if round > 0 {
		f.fill(req.ProtoReflect(), []float64{0.1, 0.3, 0.7, 0.95}[f.IntN(4)])
	}
	switch r := req.(type) {
	case *cri.RunPodSandboxRequest:
		if round%2 == 1 {
			proto.Merge(r, &cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "half", Namespace: "default", Uid: "uid"}}})
			r.RuntimeHandler, r.Config.Metadata.Attempt = "", f.Uint32()
		}
	case *cri.CreateContainerRequest:
		if round%2 == 1 {
			proto.Merge(r, &cri.CreateContainerRequest{PodSandboxId: f.pod, Config: &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "half"}, Image: &cri.ImageSpec{Image: busybox}}})
			r.Config.Metadata.Attempt = f.Uint32()
		}
	case *cri.RemoveImageRequest:
		r.Image = nil
	case *cri.StopPodSandboxRequest:
		r.PodSandboxId = strings.Replace(r.PodSandboxId, f.pod, nobody, 1)
	case *cri.RemovePodSandboxRequest:
		r.PodSandboxId = strings.Replace(r.PodSandboxId, f.pod, nobody, 1)
	case *cri.StopContainerRequest:
		r.ContainerId = strings.Replace(r.ContainerId, f.container, nobody, 1)
	case *cri.RemoveContainerRequest:
		r.ContainerId = strings.Replace(r.ContainerId, f.container, nobody, 1)
	}
	return req
}

func (f *filler) fill(m protoreflect.Message, share float64) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		d := fields.Get(i)
		switch {
		case f.Float64() > share || slices.Contains([]protoreflect.Name{"windows", "location"}, d.Name()):
		case d.IsMap():
			m.Mutable(d).Map().Set(protoreflect.ValueOfString("k").MapKey(), protoreflect.ValueOfString("v"))
		case d.IsList() && d.Message() != nil:
			v := m.Mutable(d).List().NewElement()
			f.fill(v.Message(), share)
			m.Mutable(d).List().Append(v)
		case d.IsList():
			m.Mutable(d).List().Append(f.scalar(d))
		case d.Message() != nil:
			f.fill(m.Mutable(d).Message(), share)
		default:
			m.Set(d, f.scalar(d))
		}
	}
}

func (f *filler) scalar(d protoreflect.FieldDescriptor) protoreflect.Value {
	number := []int64{0, 1, -1, 1 << 20, 1<<62 + 1}[f.IntN(5)]
	switch d.Kind() {
	case protoreflect.StringKind:
		known := f.strings[string(d.Name())]
		if known == nil {
			known = []string{"", "x", "1"}
		}
		return protoreflect.ValueOfString(known[f.IntN(len(known))])
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("x"))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(f.IntN(2) == 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber([]int{0, 0, 0, 1, 2, 99}[f.IntN(6)]))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(number))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(number))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(number))
	}
	return protoreflect.ValueOfInt64(number)
}
