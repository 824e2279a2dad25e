package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/systemd"
)

// tell is what the daemon has to say to its service manager.
func tell(service *systemd.Service, log *slog.Logger) func(state string) {
	return func(state string) {
		if err := service.Tell(state); err != nil {
			log.Warn("the service manager was not told", "state", state, "error", err)
		}
	}
}

// watch tells the manager that all is well, twice in each interval, for as long as the engine answers on its own socket. An
// engine that does not is ended by the manager, with the stacks of its goroutines in its log, and started again: pods do not notice.
func watch(ctx context.Context, interval time.Duration, listen string, told func(string), log *slog.Logger) {
	for ctx.Err() == nil {
		asked, end := context.WithTimeout(ctx, interval/2)
		err := alive(asked, listen)
		if err == nil {
			told(systemd.Alive)
		} else if ctx.Err() == nil {
			log.Error("the engine does not answer itself; its service manager will end it", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(interval / 2):
		}
		end()
	}
}

// alive asks what every other request needs, too: the socket, the server and the index of pods. The connection is closed again,
// since one that stays would be spared what new clients meet.
func alive(ctx context.Context, listen string) error {
	conn, err := grpc.NewClient("unix:"+strings.TrimPrefix(listen, "unix://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	nobody := &cri.PodSandboxFilter{Id: strings.Repeat("0", 64)}
	if _, err := cri.NewRuntimeServiceClient(conn).ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: nobody}); err != nil {
		return fmt.Errorf("cannot list pods: %w", err)
	}
	return nil
}
