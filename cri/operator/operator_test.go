package operator

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// daemon answers as a test wants; what it hashes of an archive is the id of the image.
type daemon struct {
	Images
	pull  func(ctx context.Context, req PullRequest, progress func(Progress)) (Result, error)
	limit int64 // bytes of an archive that are read; 0: all
}

func (d daemon) Pull(ctx context.Context, req PullRequest, progress func(Progress)) (Result, error) {
	return d.pull(ctx, req, progress)
}

func (d daemon) Import(ctx context.Context, archive io.Reader, progress func(Progress)) (Result, error) {
	if d.limit > 0 {
		archive = io.LimitReader(archive, d.limit)
	}
	hash := sha256.New()
	n, err := io.Copy(hash, archive)
	if err != nil {
		return Result{}, err
	}
	progress(Progress{Layer: "only", Phase: "done", Done: n, Total: n})
	return Result{Images: []Image{{ID: fmt.Sprintf("%x", hash.Sum(nil)), Size: n}}}, nil
}

func (d daemon) Inventory(context.Context) (Inventory, error) {
	return Inventory{Pods: []string{"a", "b"}, Containers: []string{}, Instance: json.RawMessage(`{"bridge":"ek0"}`)}, nil
}

// dial serves s on a unix socket and returns a client of it.
func dial(t *testing.T, s Service) Client {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	Register(g, s)
	go g.Serve(l)
	t.Cleanup(g.Stop)
	conn, err := grpc.NewClient("unix://"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return Client{conn}
}

func TestPullReportsTheLastOfEveryLayerAndThenTheResult(t *testing.T) {
	const layers, steps = 8, 5000
	c := dial(t, daemon{pull: func(_ context.Context, req PullRequest, progress func(Progress)) (Result, error) {
		var group sync.WaitGroup
		for layer := range layers {
			group.Go(func() {
				for i := range int64(steps) {
					progress(Progress{Layer: fmt.Sprint(layer), Phase: "downloading", Done: i + 1, Total: steps})
				}
			})
		}
		group.Wait()
		return Result{Images: []Image{{ID: "sha256:1", Tags: []string{req.Image}}}}, nil
	}})
	last := map[string]int64{}
	reports := 0
	result, err := c.Pull(t.Context(), PullRequest{Image: "web:1"}, func(p Progress) {
		if p.Done < last[p.Layer] {
			t.Errorf("layer %s went from %d back to %d", p.Layer, last[p.Layer], p.Done)
		}
		last[p.Layer] = p.Done
		reports++
	})
	if err != nil || len(result.Images) != 1 || result.Images[0].Tags[0] != "web:1" {
		t.Fatalf("got %+v, %v", result, err)
	}
	if len(last) != layers {
		t.Errorf("heard of %d layers, not %d", len(last), layers)
	}
	for layer, done := range last {
		if done != steps {
			t.Errorf("the last report of layer %s says %d", layer, done)
		}
	}
	if reports > layers*steps/10 {
		t.Errorf("%d reports were sent", reports)
	}
}

func TestAClientThatDoesNotListenHoldsNoPullUp(t *testing.T) {
	finished := make(chan struct{})
	c := dial(t, daemon{pull: func(_ context.Context, _ PullRequest, progress func(Progress)) (Result, error) {
		for i := range int64(200_000) { // far more than the buffers of a connection
			progress(Progress{Layer: fmt.Sprint(i % 50), Done: i, Phase: strings.Repeat("x", 100)})
		}
		close(finished)
		return Result{}, nil
	}})
	release := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		_, err := c.Pull(t.Context(), PullRequest{}, func(Progress) { <-release })
		done <- err
	}()
	select {
	case <-finished:
	case <-time.After(10 * time.Second):
		t.Error("the pull waits for its client")
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAPullEndsWithItsClient(t *testing.T) {
	started, ended := make(chan struct{}), make(chan struct{})
	c := dial(t, daemon{pull: func(ctx context.Context, _ PullRequest, _ func(Progress)) (Result, error) {
		close(started)
		<-ctx.Done()
		close(ended)
		return Result{}, ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	if _, err := c.Pull(ctx, PullRequest{}, nil); status.Code(err) != codes.Canceled {
		t.Errorf("got %v", err)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the pull goes on")
	}
}

func TestErrorsKeepCodeAndMessage(t *testing.T) {
	c := dial(t, daemon{pull: func(context.Context, PullRequest, func(Progress)) (Result, error) {
		return Result{}, status.Error(codes.NotFound, "no such image")
	}})
	_, err := c.Pull(t.Context(), PullRequest{}, nil)
	if status.Code(err) != codes.NotFound || status.Convert(err).Message() != "no such image" {
		t.Errorf("got %v", err)
	}
}

func archive(n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i * 31 / 7)
	}
	return data
}

func TestImportCarriesEveryByte(t *testing.T) {
	for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 5*chunkSize + 123} {
		c := dial(t, daemon{})
		data := archive(size)
		var last Progress
		result, err := c.Import(t.Context(), bytes.NewReader(data), func(p Progress) { last = p })
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if want := fmt.Sprintf("%x", sha256.Sum256(data)); result.Images[0].ID != want || last.Done != int64(size) {
			t.Errorf("%d bytes: got %+v, last report %+v", size, result, last)
		}
	}
}

func TestImportMayEndBeforeTheArchive(t *testing.T) {
	c := dial(t, daemon{limit: 1000})
	endless := io.MultiReader(bytes.NewReader(archive(1000)), zeros{})
	result, err := c.Import(t.Context(), endless, nil)
	if err != nil || result.Images[0].Size != 1000 {
		t.Errorf("got %+v, %v", result, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestImportSaysThatTheArchiveCannotBeRead(t *testing.T) {
	c := dial(t, daemon{})
	broken := io.MultiReader(bytes.NewReader(archive(3*chunkSize)), failing{})
	if _, err := c.Import(t.Context(), broken, nil); !errors.Is(err, errDisk) {
		t.Errorf("got %v", err)
	}
}

var errDisk = errors.New("input/output error")

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errDisk }

func TestInventory(t *testing.T) {
	got, err := dial(t, daemon{}).Inventory(t.Context())
	if err != nil || len(got.Pods) != 2 || got.Containers == nil || string(got.Instance) != `{"bridge":"ek0"}` {
		t.Errorf("got %+v, %v", got, err)
	}
}

func (daemon) Gone(context.Context) (Gone, error) {
	return Gone{Pods: json.RawMessage(`[{"id":"1"}]`)}, nil
}

func TestGone(t *testing.T) {
	got, err := dial(t, daemon{}).Gone(t.Context())
	if err != nil || string(got.Pods) != `[{"id":"1"}]` {
		t.Errorf("got %s, %v", got.Pods, err)
	}
}

func TestCredentialsAreNeverPrinted(t *testing.T) {
	req := PullRequest{Image: "i", Auth: &Auth{Username: "me", Password: "s3cret"}}
	for _, verb := range []string{"%v", "%+v", "%s", "%#v"} {
		for _, text := range []string{fmt.Sprintf(verb, req.Auth), fmt.Sprintf(verb, *req.Auth), fmt.Sprintf(verb, req)} {
			if strings.Contains(text, "s3cret") {
				t.Errorf("%s prints %s", verb, text)
			}
		}
	}
}

func (daemon) CheckNetwork(_ context.Context, req CheckNetworkRequest) (NetworkCheck, error) {
	return NetworkCheck{Status: "broken", Detail: req.Pod + " has no eth0"}, nil
}

func TestCheckNetwork(t *testing.T) {
	got, err := dial(t, daemon{}).CheckNetwork(t.Context(), CheckNetworkRequest{Pod: "p1"})
	if err != nil || got.Status != "broken" || got.Detail != "p1 has no eth0" {
		t.Errorf("got %+v, %v", got, err)
	}
}
