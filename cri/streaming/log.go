package streaming

import (
	"context"
	"log/slog"

	"k8s.io/klog/v2"
)

// QuietLibraries sends to log, at debug level, what the Kubernetes libraries below this room say through klog. They
// call it an error when a client hangs up. klog has one logger for the whole process, so main calls this once, before
// anything else runs.
func QuietLibraries(log *slog.Logger) {
	klog.SetSlogLogger(slog.New(demoted{log.Handler()}))
}

// demoted is a handler for which everything is as unimportant as debugging.
type demoted struct{ slog.Handler }

func (d demoted) Enabled(ctx context.Context, _ slog.Level) bool {
	return d.Handler.Enabled(ctx, slog.LevelDebug)
}

func (d demoted) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return d.Handler.Handle(ctx, r)
}

func (d demoted) WithAttrs(attrs []slog.Attr) slog.Handler {
	return demoted{d.Handler.WithAttrs(attrs)}
}
func (d demoted) WithGroup(name string) slog.Handler { return demoted{d.Handler.WithGroup(name)} }
