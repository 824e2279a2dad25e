package network

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
)

// Check is the last answer of the plugins to STATUS.
type check struct {
	mu      sync.Mutex // guards all
	list    *libcni.NetworkConfigList
	err     error
	when    time.Time     // of the answer; zero: none yet
	running chan struct{} // closed when the question in flight is answered; nil: none
}

const (
	// The kubelet asks every few seconds. A network that was well a moment ago is taken to be well.
	statusFresh, statusRetry = 15 * time.Second, time.Second
	// firstStatus is how long the very first question may be waited for, so that a node is ready at once.
	firstStatus = time.Second
)

// Ready returns nil when there is a configuration, its plugins exist, and their last answer to STATUS (configurations
// from version 1.1 on) was good. An old answer is renewed behind the caller's back: a question never waits for a
// plugin, save for a moment after a new configuration.
func (c *CNI) Ready() error {
	list, err := c.network()
	if err != nil {
		return err
	}
	if err := c.findPlugins(list); err != nil {
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	if !hasStatus(list) {
		return nil
	}
	return c.status(list)
}

func hasStatus(list *libcni.NetworkConfigList) bool {
	ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "1.1.0")
	return ok && err == nil
}

func (c *CNI) status(list *libcni.NetworkConfigList) error {
	known, age, err := c.check.answer(list)
	if known && (age < statusRetry || err == nil && age < statusFresh) {
		return err
	}
	done := c.askStatus(list)
	if known {
		return err
	}
	select {
	case <-done:
	case <-time.After(firstStatus):
	}
	if known, _, err = c.check.answer(list); known {
		return err
	}
	return fmt.Errorf("%w: the plugins of CNI network %s have not answered STATUS yet", ErrNotReady, list.Name)
}

func (k *check) answer(list *libcni.NetworkConfigList) (known bool, age time.Duration, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.list == list && !k.when.IsZero(), time.Since(k.when), k.err
}

// askStatus asks in the background, one question at a time; what it returns is closed when the question is answered.
func (c *CNI) askStatus(list *libcni.NetworkConfigList) <-chan struct{} {
	k := &c.check
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.running != nil {
		return k.running
	}
	done := make(chan struct{})
	k.running = done
	go func() {
		err := c.questionStatus(list)
		k.mu.Lock()
		defer k.mu.Unlock()
		k.list, k.err, k.when, k.running = list, err, time.Now(), nil
		close(done)
	}()
	return done
}

func (c *CNI) questionStatus(list *libcni.NetworkConfigList) error {
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout())
	defer cancel()
	if err := c.lib().GetStatusNetworkList(ctx, list); err != nil {
		return fmt.Errorf("%w: %w", ErrNotReady, pluginError(list.Name, err))
	}
	return nil
}
