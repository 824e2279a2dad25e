package sandbox

import (
	"context"
	"errors"

	"github.com/evenkeel/evenkeel/internal/effect"
)

// An undo reverses one effect. It is idempotent, and succeeds when there is nothing to undo.
type undo struct {
	effect effect.Effect
	act    func(context.Context) error
}

// undoAll runs every step in order, goes on past failures, and joins the errors.
func undoAll(ctx context.Context, steps ...undo) error {
	var errs []error
	for _, step := range steps {
		errs = append(errs, step.effect.Do(ctx, func() error { return step.act(ctx) }))
	}
	return errors.Join(errs...)
}

// undoing detaches from the caller, whose patience must not decide what leaks, and sets a limit of its own.
func undoing(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), teardownLimit)
}
