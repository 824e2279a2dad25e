package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/evenkeel/evenkeel/cri"
	"github.com/evenkeel/evenkeel/internal/systemd"
)

// serveMetrics answers Prometheus until ctx ends. Without an address nothing is counted and nobody listens.
func serveMetrics(ctx context.Context, address string, s *cri.Server, log *slog.Logger) error {
	if address == "" {
		return nil
	}
	listener, err := listenMetrics(address)
	if err != nil {
		return err
	}
	s.Metrics = cri.NewMetrics()
	s.Metrics.Watch(ctx, s)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.Metrics.Handler())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 15 * time.Second, IdleTimeout: 5 * time.Minute}
	context.AfterFunc(ctx, func() { server.Close() })
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("the metrics are not served any more", "address", address, "error", err)
		}
	}()
	return nil
}

func listenMetrics(address string) (net.Listener, error) {
	if strings.HasPrefix(address, "unix://") {
		return listen(&systemd.Service{}, address)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot serve metrics at metrics.address = %q: %w", address, err)
	}
	return l, nil
}
