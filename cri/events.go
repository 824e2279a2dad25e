package cri

import (
	"context"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/sandbox"
)

// GetContainerEvents sends every event from the moment its header is sent, in order. A client that does not read them
// in time is told so by the end of the stream, and must list anew.
func (s *Server) GetContainerEvents(_ *cri.GetEventsRequest, stream grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	subscription := s.Pods.Subscribe()
	defer subscription.Close()
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	sent := make(chan error, 1)
	// Send waits for the client, for as long as the stream is open; so the stream is ended from outside of it.
	go func() { sent <- sendEvents(subscription, stream) }()
	select {
	case err := <-sent:
		return err
	case <-subscription.Ended():
		return subscription.Err()
	}
}

func sendEvents(subscription *sandbox.Subscription, stream grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	for {
		select {
		case event := <-subscription.Events():
			if err := stream.Send(event); err != nil {
				return err
			}
		case <-subscription.Ended():
			return subscription.Err()
		case <-stream.Context().Done():
			return context.Cause(stream.Context())
		}
	}
}
