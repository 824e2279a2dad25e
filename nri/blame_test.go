package nri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestAPluginsCodeIsNotTheRequests(t *testing.T) {
	p := &Plugins{}
	theirs := status.Error(codes.NotFound, "no such policy")
	p.blame.RecordPluginInvocation("10-policy", "CreateContainer", theirs)
	for _, err := range []error{p.name(theirs), p.name(status.Error(codes.NotFound, "no such policy, of nobody known"))} {
		if s, ok := status.FromError(fmt.Errorf("cannot make container: %w", err)); ok {
			t.Errorf("%v has the code %s", err, s.Code())
		}
		if !strings.Contains(err.Error(), "no such policy") {
			t.Errorf("the plugin's words are lost: %v", err)
		}
	}
	if err := p.name(theirs); !strings.Contains(err.Error(), "10-policy") {
		t.Errorf("the plugin's name is lost: %v", err)
	}
	if err := p.name(fmt.Errorf("slow: %w", context.DeadlineExceeded)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the deadline is lost: %v", err)
	}
}
