package cri

import (
	"context"
	"errors"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/sandbox"
)

// execOutput is how much of a command's output fits into an answer. Clients take messages of 16 MiB (cri-client
// pkg/utils.go), so two full streams could not be received at all; the CRI asks to discard what is too much.
const execOutput = 16<<20 - 1<<10

func (s *Server) ExecSync(ctx context.Context, req *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	if err := checkCommand(req.ContainerId, req.Cmd); err != nil {
		return nil, err
	}
	stdout, stderr, code, err := s.Containers.ExecSync(ctx, req.ContainerId, req.Cmd, seconds(req.Timeout))
	if err != nil {
		return nil, err
	}
	stdout, stderr = fit(stdout, stderr, execOutput)
	return &cri.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: code}, nil
}

// fit shortens two outputs so that together they are no longer than limit. The longer one gives way first.
func fit(a, b []byte, limit int) ([]byte, []byte) {
	if len(a)+len(b) <= limit {
		return a, b
	}
	keepA := max(limit-len(b), min(len(a), limit/2))
	keepB := limit - keepA
	return a[:keepA], b[:keepB]
}

// Exec, Attach and PortForward check all that can be checked before a URL is handed out, since what fails later can
// only be told as a message on a stream.

func (s *Server) Exec(ctx context.Context, req *cri.ExecRequest) (*cri.ExecResponse, error) {
	if err := errors.Join(checkCommand(req.ContainerId, req.Cmd), checkStreams(req)); err != nil {
		return nil, err
	}
	if err := s.Containers.CheckExec(req.ContainerId); err != nil {
		return nil, err
	}
	url, err := s.Streams.Exec(req)
	if err != nil {
		return nil, err
	}
	return &cri.ExecResponse{Url: url}, nil
}

func (s *Server) Attach(ctx context.Context, req *cri.AttachRequest) (*cri.AttachResponse, error) {
	if err := errors.Join(need("container_id", req.ContainerId), checkStreams(req)); err != nil {
		return nil, err
	}
	if err := s.checkAttach(req); err != nil {
		return nil, err
	}
	url, err := s.Streams.Attach(req)
	if err != nil {
		return nil, err
	}
	return &cri.AttachResponse{Url: url}, nil
}

// checkAttach refuses streams that the container was not made with: they would stay silent for ever.
func (s *Server) checkAttach(req *cri.AttachRequest) error {
	tty, stdin, err := s.Containers.CheckAttach(req.ContainerId)
	if err != nil {
		return err
	}
	if req.Tty && !tty {
		return fmt.Errorf("cannot attach to container %s with a terminal: %w: it was created without one", req.ContainerId, sandbox.ErrInvalid)
	}
	if req.Stdin && !stdin {
		return fmt.Errorf("cannot attach to stdin of container %s: %w: it was created without stdin", req.ContainerId, sandbox.ErrInvalid)
	}
	return nil
}

func (s *Server) PortForward(ctx context.Context, req *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	if err := errors.Join(need("pod_sandbox_id", req.PodSandboxId), checkPorts(req.Port)); err != nil {
		return nil, err
	}
	if err := s.Pods.CheckPortForward(req.PodSandboxId); err != nil {
		return nil, err
	}
	url, err := s.Streams.PortForward(req)
	if err != nil {
		return nil, err
	}
	return &cri.PortForwardResponse{Url: url}, nil
}

func checkCommand(id string, command []string) error {
	if err := need("container_id", id); err != nil {
		return err
	}
	if len(command) == 0 {
		return fmt.Errorf("cannot run a command in container %s: the command is %w", id, errMissing)
	}
	return nil
}

// checkStreams applies the CRI's rules for ExecRequest and AttachRequest (api.proto).
func checkStreams(req streamsRequest) error {
	if req.GetTty() && req.GetStderr() {
		return fmt.Errorf("cannot open streams: %w: a terminal has no stderr of its own, so tty and stderr exclude each other", sandbox.ErrInvalid)
	}
	if !req.GetStdin() && !req.GetStdout() && !req.GetStderr() {
		return fmt.Errorf("cannot open streams: %w: one of stdin, stdout and stderr must be asked for", sandbox.ErrInvalid)
	}
	return nil
}

// streamsRequest is what ExecRequest and AttachRequest have in common.
type streamsRequest interface {
	GetTty() bool
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
}

// checkPorts: WebSocket clients name the ports in the request, SPDY clients later, with each stream.
func checkPorts(ports []int32) error {
	for _, port := range ports {
		if port < 1 || port > 65535 {
			return fmt.Errorf("cannot forward port %d: %w: ports go from 1 to 65535", port, sandbox.ErrInvalid)
		}
	}
	return nil
}
