package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/cri/streaming"
	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/internal/effect"
	"github.com/evenkeel/evenkeel/sandbox"
)

func TestCodes(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("cannot do X to Y: %w", err) }
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{wrap(sandbox.ErrNotFound), codes.NotFound},
		{wrap(sandbox.ErrInvalid), codes.InvalidArgument},
		{wrap(sandbox.ErrState), codes.FailedPrecondition},
		{wrap(sandbox.ErrUnsupported), codes.Unimplemented},
		{wrap(sandbox.ErrUnknownState), codes.Unavailable},
		{wrap(sandbox.ErrTimeout), codes.DeadlineExceeded},
		{wrap(image.ErrNotFound), codes.NotFound},
		{wrap(image.ErrReference), codes.InvalidArgument},
		{wrap(image.ErrAmbiguous), codes.InvalidArgument},
		{wrap(image.ErrUnavailable), codes.Unknown},
		{wrap(image.ErrDenied), codes.PermissionDenied},
		{wrap(image.ErrPlatform), codes.NotFound},
		{wrap(image.ErrSubPath), codes.InvalidArgument},
		{wrap(image.ErrCorrupt), codes.DataLoss},
		{wrap(streaming.ErrTooMany), codes.ResourceExhausted},
		{wrap(context.DeadlineExceeded), codes.DeadlineExceeded},
		{wrap(context.Canceled), codes.Canceled},
		{wrap(need("image", "")), codes.InvalidArgument},
		{status.Error(codes.Aborted, "made elsewhere"), codes.Aborted},
		{wrap(status.Error(codes.Aborted, "made elsewhere")), codes.Aborted},
		{errors.New("anything else"), codes.Unknown},
		// the registry, not the request, ran out of time
		{errors.Join(wrap(image.ErrUnavailable), context.DeadlineExceeded), codes.Unknown},
		// a container that is missing because its shim is silent is not missing
		{fmt.Errorf("%w: %w", sandbox.ErrUnknownState, sandbox.ErrNotFound), codes.Unavailable},
	} {
		if got := codeOf(c.err); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
}

func TestEverySentinelIsInTheTableOnce(t *testing.T) {
	seen := map[error]bool{}
	for _, row := range table {
		if seen[row.err] {
			t.Errorf("%v is there twice", row.err)
		}
		seen[row.err] = true
	}
}

func TestMessagesStartAsTheKubeletExpects(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("cannot pull web:1: %w: no route to host", image.ErrUnavailable), "RegistryUnavailable: cannot pull web:1: "},
		{errors.New("cannot create container web: mounts[2]: RROUnsupported: the handler cannot"), "RROUnsupported: cannot create container web: "},
		{errors.New("RROUnsupported: already there"), "RROUnsupported: already there"},
		{errors.New("cannot create container web: ImageVolumeMountFailed: no sub path"), "ImageVolumeMountFailed: cannot create"},
		{fmt.Errorf("cannot pull web:1: %w", image.ErrDenied), "cannot pull web:1: "},
	} {
		got := status.Convert(answer(t.Context(), c.err, &effect.Trace{})).Message()
		if !strings.HasPrefix(got, c.want) {
			t.Errorf("%q does not start with %q", got, c.want)
		}
	}
}

var step = effect.New("cri-test.step")

func TestOnlyAnExpiredRequestIsToldItsSteps(t *testing.T) {
	ctx, trace := effect.WithTrace(t.Context())
	if err := step.Do(ctx, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if got := answer(ctx, errors.New("broken"), trace).Error(); strings.Contains(got, "cri-test.step") {
		t.Errorf("a client that has time is told the steps: %s", got)
	}
	expired, cancel := context.WithDeadline(ctx, time.Now().Add(-time.Second))
	defer cancel()
	if got := answer(expired, expired.Err(), trace).Error(); !strings.Contains(got, "cri-test.step") {
		t.Errorf("a client whose time is up is not told the steps: %s", got)
	}
	for _, c := range []struct {
		what string
		left time.Duration
		err  error
		told bool
	}{
		{"answered shortly before the deadline", sandbox.Margin / 2, fmt.Errorf("not up yet: %w", context.DeadlineExceeded), true},
		{"stopped shortly before it, and not done", sandbox.Margin / 2, sandbox.ErrTimeout, true},
		{"a limit of the request's own, long before it", time.Minute, sandbox.ErrTimeout, false},
		{"refused shortly before it", sandbox.Margin / 2, sandbox.ErrInvalid, false},
	} {
		limited, cancel := context.WithTimeout(ctx, c.left)
		defer cancel()
		if got := answer(limited, c.err, trace).Error(); strings.Contains(got, "cri-test.step") != c.told {
			t.Errorf("%s: %s", c.what, got)
		}
	}
}
