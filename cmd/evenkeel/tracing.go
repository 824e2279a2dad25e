package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/evenkeel/evenkeel/cri"
	"github.com/evenkeel/evenkeel/tracing"
)

// flushLimit is how long the end of the daemon waits for a collector.
const flushLimit = 2 * time.Second

// trace sends the server's requests to the collector that c names, if any, until the returned function is called.
func (c tracingConfig) trace(ctx context.Context, server *cri.Server, log *slog.Logger) (flush func(), err error) {
	if c.Endpoint == "" {
		return func() {}, nil
	}
	tracer, err := tracing.Open(ctx, c.Endpoint, c.Sampling, version, log)
	if err != nil {
		return nil, err
	}
	server.Tracer = tracer
	return func() {
		ctx, end := context.WithTimeout(context.WithoutCancel(ctx), flushLimit)
		defer end()
		if err := tracer.Close(ctx); err != nil {
			log.Warn("the last spans are lost", "endpoint", c.Endpoint, "error", err)
		}
	}, nil
}
