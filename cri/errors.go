package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/evenkeel/evenkeel/cri/streaming"
	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/internal/effect"
	"github.com/evenkeel/evenkeel/sandbox"
)

// errMissing says that a request lacks a field it must have.
var errMissing = errors.New("missing")

// table says which gRPC code an error has; the first sentinel that matches decides, and an error that matches none is
// Unknown. Sentinels of the rooms stand before those of package context, since an error can carry both: a registry that
// did not answer in time is an unavailable registry, not a request that was too slow.
var table = []struct {
	err  error
	code codes.Code
}{
	{errMissing, codes.InvalidArgument},

	{sandbox.ErrTimeout, codes.DeadlineExceeded}, // the kubelet's exec probes tell a failure from a defect by this code
	{sandbox.ErrInvalid, codes.InvalidArgument},
	{sandbox.ErrState, codes.FailedPrecondition},
	{sandbox.ErrUnsupported, codes.Unimplemented},
	{sandbox.ErrUnknownState, codes.Unavailable},
	{sandbox.ErrNotFound, codes.NotFound},
	{sandbox.ErrSlowReader, codes.ResourceExhausted},
	{sandbox.ErrEnded, codes.Unavailable},

	// Unknown, because the kubelet's client strips the gRPC wrapper from Unknown alone, and the kubelet looks at how
	// the bare message starts (cri-client remote_image.go, pkg/kubelet/images/image_manager.go).
	{image.ErrUnavailable, codes.Unknown},
	{image.ErrReference, codes.InvalidArgument},
	{image.ErrAmbiguous, codes.InvalidArgument},
	{image.ErrDenied, codes.PermissionDenied},
	{image.ErrPlatform, codes.NotFound}, // what both peers answer
	{image.ErrArtifact, codes.InvalidArgument},
	{image.ErrSubPath, codes.InvalidArgument}, // not NotFound: the image is there
	{image.ErrCorrupt, codes.DataLoss},
	{image.ErrNotFound, codes.NotFound},

	{streaming.ErrTooMany, codes.ResourceExhausted},

	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
}

// codeOf finds an error's code. An error that is a gRPC status already keeps its own.
func codeOf(err error) codes.Code {
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	for _, row := range table {
		if errors.Is(err, row.err) {
			return row.code
		}
	}
	return codes.Unknown
}

// answer turns the error of a handler into what the client gets. Where the request ran out of time, the message says
// which steps the time went to.
func answer(ctx context.Context, err error, trace *effect.Trace) error {
	if err == nil {
		return nil
	}
	code, message := codeOf(err), err.Error()
	if s, ok := status.FromError(err); ok {
		message = s.Message()
	}
	if errors.Is(err, image.ErrUnavailable) {
		message = crierrors.ErrRegistryUnavailable.Error() + ": " + message
	}
	message = lead(message)
	if steps := trace.String(); steps != "" && ranOut(ctx, code) {
		message = fmt.Sprintf("%s (steps: %s)", message, steps)
	}
	return status.Error(code, message)
}

// ranOut tells whether the client's time is up, or was taken to be by a room that answers before it is (sandbox.Margin).
func ranOut(ctx context.Context, code codes.Code) bool {
	deadline, limited := ctx.Deadline()
	return errors.Is(ctx.Err(), context.DeadlineExceeded) || limited && code == codes.DeadlineExceeded && time.Until(deadline) < sandbox.Margin
}

// lead brings the word that the kubelet looks for to the start of a message, where it looks. The rooms below write it
// where it arises, and wrap it on its way up.
func lead(message string) string {
	for _, word := range []string{crierrors.ErrRROUnsupported.Error(), crierrors.ErrImageVolumeMountFailed.Error()} {
		if strings.Contains(message, word+": ") && !strings.HasPrefix(message, word) {
			return word + ": " + message
		}
	}
	return message
}

// known drops the complaint that an object does not exist: whoever asked for its absence has what was asked for.
func known(err error) error {
	if errors.Is(err, sandbox.ErrNotFound) {
		return nil
	}
	return err
}

// need complains about the first field that is empty. It takes names and values in turn.
func need(fields ...string) error {
	for i := 0; i+1 < len(fields); i += 2 {
		if fields[i+1] == "" {
			return fmt.Errorf("cannot serve the request: %s is %w", fields[i], errMissing)
		}
	}
	return nil
}
