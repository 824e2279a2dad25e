package sandbox

import (
	"slices"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kubelet lists all pods and containers every second, and few of them change in between. Encoding a list of a
// thousand containers anew takes 37,000 allocations; so each object keeps its own part of the answer.

// An encoding is one item of a list answer as it goes over the wire, of an object with these facts. It is valid for as
// long as the object has them: whoever takes it compares, so that nothing has to be told of a change.
type encoding[R any] struct {
	facts *R
	state int32 // what of the item does not follow from the facts
	wire  []byte
}

// itemField is the number of the field that holds the items, in ListPodSandboxResponse and ListContainersResponse alike.
const itemField = 1

// encoded takes the object's encoding from its place, or makes it.
func encoded[R any](place *atomic.Pointer[encoding[R]], facts *R, state int32, item func() proto.Message) ([]byte, error) {
	if e := place.Load(); e != nil && e.facts == facts && e.state == state {
		return e.wire, nil
	}
	message, err := proto.Marshal(item())
	if err != nil {
		return nil, err
	}
	wire := protowire.AppendTag(nil, itemField, protowire.BytesType)
	wire = slices.Clip(protowire.AppendBytes(wire, message))
	place.Store(&encoding[R]{facts, state, wire})
	return wire, nil
}

// Encoded is List as the fields of a ListContainersResponse.
func (c *Containers) Encoded(f *cri.ContainerFilter) ([]byte, error) {
	var parts [][]byte
	for _, found := range c.pods.index.allContainers("") {
		r := found.facts()
		state := found.stateOf(r)
		if !r.listed() || !found.matches(r, state, f) {
			continue
		}
		wire, err := encoded(&found.encoding, r, int32(state), func() proto.Message { return r.item(state) })
		if err != nil {
			return nil, err
		}
		parts = append(parts, wire)
	}
	return slices.Concat(parts...), nil
}

// Encoded is List as the fields of a ListPodSandboxResponse.
func (p *Pods) Encoded(f *cri.PodSandboxFilter) ([]byte, error) {
	var parts [][]byte
	for _, pod := range p.index.allPods() {
		r := pod.facts()
		if !pod.listed() || !podMatches(r, f) {
			continue
		}
		wire, err := encoded(&pod.encoding, r, 0, func() proto.Message { return r.item() })
		if err != nil {
			return nil, err
		}
		parts = append(parts, wire)
	}
	return slices.Concat(parts...), nil
}
