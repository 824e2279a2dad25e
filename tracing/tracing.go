// Package tracing tells an OpenTelemetry collector what requests consist of: one span for each request, which continues
// the trace that the client sent with it (W3C Trace Context), and below it one for each effect (internal/effect).
//
// The rooms that do the work know nothing of it: effects say what they do, and whoever handles a request watches them.
package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"strings"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/evenkeel/evenkeel/internal/effect"
)

// million is the unit of a sampling rate, as the kubelet's and CRI-O's is.
const million = 1_000_000

// A Tracer sends spans to one collector, in batches and behind everybody's back: one that is away costs spans and nothing else.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
}

// Open prepares to send to the OTLP/gRPC endpoint: host:port or http://host:port without, https://host:port with TLS. It
// does not wait for the collector. perMillion of the requests are traced that come without a trace; of others, the client decides.
func Open(ctx context.Context, endpoint string, perMillion int, release string, log *slog.Logger) (*Tracer, error) {
	if !strings.Contains(endpoint, "://") {
		endpoint = "http://" + endpoint
	}
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(endpoint))
	if err != nil {
		return nil, fmt.Errorf("cannot trace to %s: %w", endpoint, err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("spans are lost", "endpoint", endpoint, "error", err) }))
	provider := sdk.NewTracerProvider(
		sdk.WithBatcher(exporter),
		sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(float64(perMillion)/million))),
		sdk.WithResource(resource.NewSchemaless(attribute.String("service.name", "evenkeel"), attribute.String("service.version", release))),
	)
	return &Tracer{provider: provider, tracer: provider.Tracer("github.com/evenkeel/evenkeel")}, nil
}

// Close sends what has not been sent, as long as ctx allows.
func (t *Tracer) Close(ctx context.Context) error { return t.provider.Shutdown(ctx) }

// Begin begins the span of a request. method is gRPC's full name of it, header looks its metadata up. The effects of the
// returned context are parts of the span, also when they end after it: work goes on that a caller has left. end gives it its outcome:
// the name of a gRPC code, what it was about, and the error.
func (t *Tracer) Begin(ctx context.Context, method string, header func(string) string) (_ context.Context, end func(code string, about []slog.Attr, err error)) {
	service, name := path.Split(strings.TrimPrefix(method, "/"))
	parent := propagation.TraceContext{}.Extract(ctx, headers(header))
	under, span := t.tracer.Start(parent, service+name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.String("rpc.system", "grpc"), attribute.String("rpc.service", strings.TrimSuffix(service, "/")), attribute.String("rpc.method", name)))
	if !span.IsRecording() {
		return ctx, func(string, []slog.Attr, error) {}
	}
	watched := effect.Watch(ctx, func(s effect.Step) { t.step(under, s) })
	return watched, func(code string, about []slog.Attr, err error) {
		span.SetAttributes(attribute.String("rpc.grpc.status", code))
		for _, a := range about {
			span.SetAttributes(attribute.String("evenkeel."+a.Key, a.Value.String()))
		}
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}
}

// step is the span of an effect that has ended. How effects nest is not known; all are parts of the request.
func (t *Tracer) step(under context.Context, s effect.Step) {
	_, span := t.tracer.Start(under, s.Name, trace.WithTimestamp(s.Start))
	if s.Err != nil {
		span.SetStatus(codes.Error, s.Err.Error())
	}
	span.End(trace.WithTimestamp(s.Start.Add(s.Took)))
}

// headers reads a request's metadata as the propagator wants to (propagation.TextMapCarrier).
type headers func(string) string

func (h headers) Get(key string) string { return h(key) }
func (h headers) Set(string, string)    {}
func (h headers) Keys() []string        { return nil }
