package operator

import (
	"context"
	"io"
	"time"

	"google.golang.org/grpc"
)

// Images is the part of the Service that is about images.
type Images interface {
	// Usage lists the images with what they occupy.
	Usage(ctx context.Context) (Usage, error)
	// Explain says how an image would be pulled, and asks its hosts what its reference means now.
	Explain(ctx context.Context, req PullRequest) (Explanation, error)
	// Check reads every layer from disk.
	Check(ctx context.Context, req CheckRequest) (CheckResult, error)
	// Export writes images as an archive.
	Export(ctx context.Context, req ExportRequest, archive io.Writer) error
}

// Usage of the image store.
type Usage struct {
	Images []ImageUsage `json:"images"`
}

// ImageUsage is one image.
type ImageUsage struct {
	ID       string    `json:"id"`
	Shared   int64     `json:"shared"` // bytes that other images need as well
	PulledAt time.Time `json:"pulledAt"`
	Artifact string    `json:"artifact,omitempty"` // type of an OCI artifact
}

// Explanation is image.Explanation in words.
type Explanation struct {
	Reference string            `json:"reference"`
	Here      bool              `json:"here"`
	Platform  string            `json:"platform"`
	HostsFile string            `json:"hostsDir,omitempty"`
	Hosts     []HostExplanation `json:"hosts"`
	Error     string            `json:"error,omitempty"`
}

// HostExplanation is one host, in the order of asking.
type HostExplanation struct {
	URL          string   `json:"url"`
	Mirror       bool     `json:"mirror"`
	Capabilities []string `json:"capabilities"`
	TLS          string   `json:"tls"`
	Headers      []string `json:"headers,omitempty"`
	Credentials  string   `json:"credentials"` // where they come from
	Digest       string   `json:"digest,omitempty"`
	Milliseconds float64  `json:"milliseconds"`
	Error        string   `json:"error,omitempty"`
}

// CheckRequest says whether damaged layers are fetched again.
type CheckRequest struct {
	Repair bool `json:"repair"`
}

// CheckResult is image.Report with the pods that stand on damaged layers.
type CheckResult struct {
	Layers       int           `json:"layers"`
	Bytes        int64         `json:"bytes"`
	Unverifiable []string      `json:"unverifiable"`
	Damages      []Damage      `json:"damages"`
	Broken       []BrokenImage `json:"broken"` // images that lack a layer after any repair
}

// Damage is one layer.
type Damage struct {
	Layer  string   `json:"layer"`
	Reason string   `json:"reason"`
	Images []string `json:"images"` // names
	Pods   []string `json:"pods"`   // namespace/name (id) with containers on the layer: start them again after a repair
}

// BrokenImage is not listed until it has been repaired.
type BrokenImage struct {
	Image  string `json:"image"`
	Reason string `json:"reason,omitempty"` // of the repair's failure
}

// ExportRequest names images.
type ExportRequest struct {
	Images      []string `json:"images"`
	Compression string   `json:"compression,omitempty"` // gzip, zstd, or none
}

const (
	methodUsage   = "/" + name + "/Usage"
	methodExplain = "/" + name + "/Explain"
	methodCheck   = "/" + name + "/Check"
	methodExport  = "/" + name + "/Export"
)

var imageMethods = []grpc.MethodDesc{
	{MethodName: "Usage", Handler: unary(methodUsage, func(s Service, ctx context.Context, _ struct{}) (Usage, error) { return s.Usage(ctx) })},
	{MethodName: "Explain", Handler: unary(methodExplain, Service.Explain)},
	{MethodName: "Check", Handler: unary(methodCheck, Service.Check)},
}

var exportDesc = grpc.StreamDesc{StreamName: "Export", Handler: export, ServerStreams: true}

// unary makes a handler of a method with one request and one answer.
func unary[Q, A any](method string, call func(Service, context.Context, Q) (A, error)) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		var req Q
		if err := decode(&req); err != nil {
			return nil, err
		}
		handle := func(ctx context.Context, _ any) (any, error) {
			answer, err := call(srv.(Service), ctx, req)
			if err != nil {
				return nil, err
			}
			return &answer, nil
		}
		if interceptor == nil {
			return handle(ctx, &req)
		}
		return interceptor(ctx, &req, &grpc.UnaryServerInfo{Server: srv, FullMethod: method}, handle)
	}
}

func export(srv any, stream grpc.ServerStream) error {
	var req ExportRequest
	if err := stream.RecvMsg(&req); err != nil {
		return err
	}
	w := &chunkWriter{stream: stream}
	if err := srv.(Service).Export(stream.Context(), req, w); err != nil {
		return err
	}
	return w.flush()
}

// chunkWriter sends what is written in pieces of a good size.
type chunkWriter struct {
	stream grpc.ServerStream
	data   []byte
}

func (w *chunkWriter) Write(p []byte) (int, error) {
	w.data = append(w.data, p...)
	if len(w.data) < chunkSize {
		return len(p), nil
	}
	return len(p), w.flush()
}

func (w *chunkWriter) flush() error {
	for len(w.data) > 0 {
		n := min(len(w.data), chunkSize)
		if err := w.stream.SendMsg(&chunk{w.data[:n]}); err != nil {
			return err
		}
		w.data = w.data[n:]
	}
	w.data = make([]byte, 0, chunkSize+64<<10) // gRPC may hold on to the old one
	return nil
}

func (c Client) Usage(ctx context.Context) (Usage, error) {
	var answer Usage
	return answer, c.Conn.Invoke(ctx, methodUsage, &struct{}{}, &answer, grpc.ForceCodec(codec{}))
}

func (c Client) Explain(ctx context.Context, req PullRequest) (Explanation, error) {
	var answer Explanation
	return answer, c.Conn.Invoke(ctx, methodExplain, &req, &answer, grpc.ForceCodec(codec{}))
}

func (c Client) Check(ctx context.Context, req CheckRequest) (CheckResult, error) {
	var answer CheckResult
	return answer, c.Conn.Invoke(ctx, methodCheck, &req, &answer, grpc.ForceCodec(codec{}))
}

// Export writes the archive as it comes; after an error it is not whole.
func (c Client) Export(ctx context.Context, req ExportRequest, archive io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Conn.NewStream(ctx, &exportDesc, methodExport, grpc.ForceCodec(codec{}))
	if err != nil {
		return err
	}
	if err := stream.SendMsg(&req); err != nil && err != io.EOF {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		var next chunk
		if err := stream.RecvMsg(&next); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if _, err := archive.Write(next.data); err != nil {
			return err
		}
	}
}
