package operator

import (
	"context"
	"io"

	"google.golang.org/grpc"
)

// name of the service. The version is part of it; a change that old clients would misread takes a new one.
const name = "evenkeel.operator.v1.Operator"

const (
	methodPull      = "/" + name + "/Pull"
	methodImport    = "/" + name + "/Import"
	methodInventory = "/" + name + "/Inventory"
	methodGone      = "/" + name + "/Gone"

	methodCheckNetwork = "/" + name + "/CheckNetwork"
)

// Register serves s on g. It is called before g, or any other server of the process, serves.
func Register(g grpc.ServiceRegistrar, s Service) {
	register()
	g.RegisterService(&desc, s)
}

var desc = grpc.ServiceDesc{
	ServiceName: name,
	HandlerType: (*Service)(nil),
	Methods: append([]grpc.MethodDesc{
		{MethodName: "Inventory", Handler: inventory},
		{MethodName: "Gone", Handler: gone},
		{MethodName: "CheckNetwork", Handler: unary(methodCheckNetwork, Service.CheckNetwork)},
	}, imageMethods...),
	Streams: []grpc.StreamDesc{pullDesc, importDesc, exportDesc},
}

var (
	pullDesc   = grpc.StreamDesc{StreamName: "Pull", Handler: pull, ServerStreams: true}
	importDesc = grpc.StreamDesc{StreamName: "Import", Handler: importArchive, ServerStreams: true, ClientStreams: true}
)

type inventoryRequest struct{}

func inventory(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
	req := &inventoryRequest{}
	if err := decode(req); err != nil {
		return nil, err
	}
	handle := func(ctx context.Context, _ any) (any, error) { return srv.(Service).Inventory(ctx) }
	if interceptor == nil {
		return handle(ctx, req)
	}
	return interceptor(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: methodInventory}, handle)
}

type goneRequest struct{}

func gone(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
	req := &goneRequest{}
	if err := decode(req); err != nil {
		return nil, err
	}
	handle := func(ctx context.Context, _ any) (any, error) { return srv.(Service).Gone(ctx) }
	if interceptor == nil {
		return handle(ctx, req)
	}
	return interceptor(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: methodGone}, handle)
}

func pull(srv any, stream grpc.ServerStream) error {
	var req PullRequest
	if err := stream.RecvMsg(&req); err != nil {
		return err
	}
	return relay(stream, func(note func(Progress)) (Result, error) {
		return srv.(Service).Pull(stream.Context(), req, note)
	})
}

func importArchive(srv any, stream grpc.ServerStream) error {
	return relay(stream, func(note func(Progress)) (Result, error) {
		return srv.(Service).Import(stream.Context(), &chunks{stream: stream}, note)
	})
}

// chunks reads the archive that a client streams.
type chunks struct {
	stream grpc.ServerStream
	rest   []byte
}

func (c *chunks) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		var next chunk
		if err := c.stream.RecvMsg(&next); err != nil {
			return 0, err // io.EOF once the client has sent all
		}
		c.rest = next.data
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

var _ io.Reader = (*chunks)(nil)
