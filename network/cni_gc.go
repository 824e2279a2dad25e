package network

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/evenkeel/evenkeel/internal/effect"
)

var gcEffect = effect.New("network.cni.gc")

// errYielded matches the error of a Collect that stepped aside for a pod.
var errYielded = errors.New("a pod that is being attached comes first")

// gcRetry is when a collection that could not be made is tried again.
const gcRetry = time.Minute

// CollectEvery collects now and then every interval, until ctx ends.
func (c *CNI) CollectEvery(ctx context.Context, interval time.Duration, live func(podID string) bool) {
	for ctx.Err() == nil {
		next := interval
		if err := c.Collect(ctx, live); errors.Is(err, errYielded) || errors.Is(err, ErrNotReady) {
			next = min(interval, gcRetry)
		} else if err != nil && ctx.Err() == nil {
			c.log().Error("cannot collect garbage of the CNI network", "error", err)
		}
		select {
		case <-time.After(next):
		case <-ctx.Done():
		}
	}
}

// Collect has the plugins of the configured network free what belongs to no pod of ours (CNI specification 1.1, GC). What
// is ours is in the records, those included whose DEL failed, which will be tried again. Whatever else there is in the
// network goes, so it is for nodes where nobody else uses the same one. Plugins of older configurations do not know the
// verb; "disableGC" in the configuration forbids it.
func (c *CNI) Collect(ctx context.Context, live func(podID string) bool) error {
	list, err := c.network()
	if err != nil {
		return err
	}
	return c.yielding.collect(ctx, func(ctx context.Context) error {
		valid, err := c.valid(live)
		if err != nil {
			return err
		}
		return gcEffect.Do(ctx, func() error {
			return pluginError(list.Name, c.lib().GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid}))
		})
	})
}

// valid lists the attachments that the plugins must keep. A pod whose record was damaged and that lives holds something too.
func (c *CNI) valid(live func(podID string) bool) ([]types.GCAttachment, error) {
	ids, err := c.recorded("")
	if err != nil {
		return nil, err
	}
	damaged, err := c.recorded(damagedSuffix)
	if err != nil {
		return nil, err
	}
	for _, id := range damaged {
		if live(id) {
			ids = append(ids, id)
		}
	}
	valid := make([]types.GCAttachment, len(ids))
	for i, id := range ids {
		valid[i] = types.GCAttachment{ContainerID: id, IfName: podInterface}
	}
	return valid, nil
}

// Yielding keeps a collection and the records apart. A plugin is told once which pods there are, so a pod that came later
// would lose its address; and a plugin can take a minute, which no pod shall wait for. So a pod that comes ends the
// collection: the plugins find the rest of the garbage the next time.
type yielding struct {
	mu        sync.Mutex // guards all
	recording int        // pods whose record is being written
	cancel    context.CancelFunc
	done      chan struct{} // closed when the collection under way has ended; nil: none is
}

// record writes a pod's record when no collection is under way.
func (y *yielding) record(ctx context.Context, write func() error) error {
	y.mu.Lock()
	y.recording++
	cancel, done := y.cancel, y.done
	y.mu.Unlock()
	defer func() {
		y.mu.Lock()
		defer y.mu.Unlock()
		y.recording--
	}()
	if done != nil {
		cancel()
		select {
		case <-done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return write()
}

// collect runs gc unless somebody comes first.
func (y *yielding) collect(ctx context.Context, gc func(context.Context) error) error {
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	y.mu.Lock()
	if y.recording > 0 || y.done != nil {
		y.mu.Unlock()
		return errYielded
	}
	done := make(chan struct{})
	y.cancel, y.done = cancel, done
	y.mu.Unlock()
	err := gc(work)
	y.mu.Lock()
	defer y.mu.Unlock()
	y.cancel, y.done = nil, nil
	close(done)
	if work.Err() != nil && ctx.Err() == nil {
		return errYielded
	}
	return err
}
