package operator

import (
	"encoding/json"
	"sync"

	"google.golang.org/grpc/encoding"
)

// codecName is the content subtype of every call: application/grpc+json.
const codecName = "json"

// register makes the codec known to gRPC's servers, which find codecs by name in a table of their own; there is no way
// to give one to a single service. The table has no lock, so it is written once, before the first server runs.
var register = sync.OnceFunc(func() { encoding.RegisterCodec(codec{}) })

// codec writes messages as JSON, except for chunks of an archive, which are what they are: base64 would cost more than
// unpacking them does.
type codec struct{}

func (codec) Name() string { return codecName }

func (codec) Marshal(v any) ([]byte, error) {
	if c, ok := v.(*chunk); ok {
		return c.data, nil
	}
	return json.Marshal(v)
}

func (codec) Unmarshal(data []byte, v any) error {
	if c, ok := v.(*chunk); ok {
		c.data = data
		return nil
	}
	return json.Unmarshal(data, v)
}

// chunk is a piece of an archive.
type chunk struct{ data []byte }
