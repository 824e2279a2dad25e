package operator

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
)

// Client is the Service of the daemon at the other end of Conn.
type Client struct{ Conn *grpc.ClientConn }

var _ Service = Client{}

// Pull ends the daemon's pull, too, when ctx ends, unless somebody else waits for the same image.
func (c Client) Pull(ctx context.Context, req PullRequest, progress func(Progress)) (Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Conn.NewStream(ctx, &pullDesc, methodPull, grpc.ForceCodec(codec{}))
	if err != nil {
		return Result{}, err
	}
	if err := stream.SendMsg(&req); err != nil && err != io.EOF { // EOF: the reason comes with the answer
		return Result{}, err
	}
	if err := stream.CloseSend(); err != nil {
		return Result{}, err
	}
	return receive(stream, progress)
}

// Import sends the archive while it is unpacked. It returns as soon as the daemon has answered, which can be before the
// archive has been read to its end.
func (c Client) Import(ctx context.Context, archive io.Reader, progress func(Progress)) (Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := c.Conn.NewStream(ctx, &importDesc, methodImport, grpc.ForceCodec(codec{}))
	if err != nil {
		return Result{}, err
	}
	go func() {
		if err := send(stream, archive); err != nil {
			cancel(err)
		}
	}()
	result, err := receive(stream, progress)
	var unread readError
	if err != nil && errors.As(context.Cause(ctx), &unread) {
		return Result{}, unread
	}
	return result, err
}

// chunkSize is well below the size that gRPC accepts by default, 4 MiB.
const chunkSize = 1 << 20

// send returns an error only when the archive cannot be read; why the daemon stopped listening is in its answer.
func send(stream grpc.ClientStream, archive io.Reader) error {
	for {
		buffer := make([]byte, chunkSize) // gRPC may hold on to it until the message has left
		n, err := io.ReadFull(archive, buffer)
		if n > 0 {
			if stream.SendMsg(&chunk{buffer[:n]}) != nil {
				return nil
			}
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return stream.CloseSend()
		default:
			return readError{err}
		}
	}
}

type readError struct{ err error }

func (e readError) Error() string { return fmt.Sprintf("cannot read the archive: %v", e.err) }
func (e readError) Unwrap() error { return e.err }

// receive passes on what is reported and returns the result, which comes last.
func receive(stream grpc.ClientStream, progress func(Progress)) (Result, error) {
	var result *Result
	for {
		var e event
		err := stream.RecvMsg(&e)
		if err == io.EOF && result != nil {
			return *result, nil
		}
		if err == io.EOF {
			return Result{}, errors.New("the daemon ended the call without a result")
		}
		if err != nil {
			return Result{}, err
		}
		for _, p := range e.Progress {
			if progress != nil {
				progress(p)
			}
		}
		if e.Result != nil {
			result = e.Result
		}
	}
}

// Gone asks for the pods that are gone.
func (c Client) Gone(ctx context.Context) (Gone, error) {
	var answer Gone
	err := c.Conn.Invoke(ctx, methodGone, &goneRequest{}, &answer, grpc.ForceCodec(codec{}))
	return answer, err
}

// Inventory asks what the daemon knows to be its own.
func (c Client) Inventory(ctx context.Context) (Inventory, error) {
	var answer Inventory
	err := c.Conn.Invoke(ctx, methodInventory, &inventoryRequest{}, &answer, grpc.ForceCodec(codec{}))
	return answer, err
}

// CheckNetwork asks the network how a pod is.
func (c Client) CheckNetwork(ctx context.Context, req CheckNetworkRequest) (NetworkCheck, error) {
	var answer NetworkCheck
	return answer, c.Conn.Invoke(ctx, methodCheckNetwork, &req, &answer, grpc.ForceCodec(codec{}))
}
