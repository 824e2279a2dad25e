package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
)

// blame remembers which plugin an error came from. The library returns what a plugin answered as it is; it tells its
// metrics the name.
type blame struct {
	mu     sync.Mutex
	lately []culprit // the oldest first, few
}

type culprit struct {
	err  error
	name string
}

// lateErrors is how many errors may be on their way from the library to whoever asked.
const lateErrors = 32

// RecordPluginInvocation implements adaptation.Metrics.
func (b *blame) RecordPluginInvocation(plugin, _ string, err error) {
	if err == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lately = append(b.lately, culprit{err, plugin})
	if over := len(b.lately) - lateErrors; over > 0 {
		b.lately = slices.Delete(b.lately, 0, over)
	}
}

// RecordPluginLatency implements adaptation.Metrics. The effect around the call has the whole time.
func (b *blame) RecordPluginLatency(string, string, time.Duration) {}

// RecordPluginAdjustments implements adaptation.Metrics.
func (b *blame) RecordPluginAdjustments(string, string, *api.ContainerAdjustment, int, int) {}

// UpdatePluginCount implements adaptation.Metrics.
func (b *blame) UpdatePluginCount(int) {}

func (b *blame) of(err error) (plugin string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.lately {
		if errors.Is(err, c.err) {
			return c.name
		}
	}
	return ""
}

// name says which plugin an error came from, where the library does not.
func (p *Plugins) name(err error) error {
	if err == nil {
		return nil
	}
	plugin := p.blame.of(err)
	if plugin == "" || strings.Contains(err.Error(), plugin) {
		return fmt.Errorf("NRI: %w", said{err})
	}
	return fmt.Errorf("NRI plugin %s: %w", plugin, said{err})
}

// said is a plugin's error without the gRPC status that plugins' errors have: the code of a request is not a plugin's to
// choose. A NotFound of its own, for one, would tell the kubelet that the container is not there.
type said struct{ err error }

func (s said) Error() string { return s.err.Error() }

// Is finds the sentinels, those of package context for example. There is no Unwrap, which would find the status.
func (s said) Is(target error) bool { return errors.Is(s.err, target) }

// survive turns a panic of the library over what a plugin said into an error: it must not end the daemon of all pods.
func survive(err *error) {
	if cause := recover(); cause != nil {
		*err = fmt.Errorf("NRI: the library cannot handle what it got from a plugin or gave to it: %v\n%s", cause, debug.Stack())
	}
}

// logger hands the library's words on. What it calls information is a matter of debugging but for those who write plugins.
type logger struct{ to *slog.Logger }

func (l logger) Debugf(ctx context.Context, format string, args ...any) {
	l.log(ctx, slog.LevelDebug, format, args)
}

func (l logger) Infof(ctx context.Context, format string, args ...any) {
	l.log(ctx, slog.LevelDebug, format, args)
}

func (l logger) Warnf(ctx context.Context, format string, args ...any) {
	l.log(ctx, slog.LevelWarn, format, args)
}

func (l logger) Errorf(ctx context.Context, format string, args ...any) {
	if len(args) == 1 && args[0] == adaptation.ErrWasmDisabled {
		return // on purpose, see the Makefile
	}
	l.log(ctx, slog.LevelError, format, args)
}

func (l logger) log(ctx context.Context, level slog.Level, format string, args []any) {
	if l.to.Enabled(ctx, level) {
		l.to.Log(ctx, level, "NRI: "+fmt.Sprintf(format, args...))
	}
}
