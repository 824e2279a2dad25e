package network

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// Watch is the network configuration in use and what keeps it up to date.
type watch struct {
	mu      sync.Mutex // guards all
	started bool
	closed  bool
	events  *fsnotify.Watcher // nil: the directory is read on every question instead
	list    *libcni.NetworkConfigList
	err     error
}

// network returns the configuration for pods that come now; the error matches ErrNotReady when there is none.
func (c *CNI) network() (*libcni.NetworkConfigList, error) {
	c.startWatch()
	c.watch.mu.Lock()
	list, err, watched := c.watch.list, c.watch.err, c.watch.events != nil
	c.watch.mu.Unlock()
	if watched && err == nil {
		return list, nil
	}
	// Without a network a look at the directory costs little, and the event may be some milliseconds away.
	c.reload()
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	return c.watch.list, c.watch.err
}

func (c *CNI) startWatch() {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	if c.watch.started || c.watch.closed {
		return
	}
	c.watch.started = true
	c.watch.err = fmt.Errorf("%w: not loaded yet", ErrNotReady)
	events, err := fsnotify.NewWatcher()
	if err != nil {
		c.warnUnwatched(err)
		return
	}
	c.watch.events = events
	go c.follow(events)
}

func (c *CNI) warnUnwatched(err error) {
	c.log().Warn("cannot watch for CNI configurations; reading the directory on every question instead", "dir", c.ConfDir, "error", err)
}

// settle is how long the directory must be quiet before it is read: a file is created, written and closed in steps.
const settle = 50 * time.Millisecond

// follow reloads when something changed, until Close, or until a watch cannot be had: machines run out of them
// (fs.inotify.max_user_watches), and what is not watched would be taken to be as it was for ever.
func (c *CNI) follow(events *fsnotify.Watcher) {
	if !c.rewatch(events) {
		return
	}
	c.reload()
	quiet := time.NewTimer(settle)
	quiet.Stop()
	for {
		select {
		case e, open := <-events.Events:
			if !open {
				return
			}
			if c.concerns(e.Name) {
				quiet.Reset(settle)
			}
		case _, open := <-events.Errors: // the queue overflowed: something was missed
			if !open {
				return
			}
			quiet.Reset(settle)
		case <-quiet.C:
			if !c.rewatch(events) {
				return
			}
			c.reload()
		}
	}
}

// rewatch watches the directory and all its parents. A directory that is removed takes its watch with it, and only
// its parent tells when it is made again, which may be gone too. It goes from the root down: a directory made
// meanwhile is either there when its turn comes, or announced by its parent, which is watched already. When that fails, it
// gives up watching and returns false.
func (c *CNI) rewatch(events *fsnotify.Watcher) bool {
	chain := []string{filepath.Clean(c.ConfDir)}
	for dir := chain[0]; dir != filepath.Dir(dir); {
		dir = filepath.Dir(dir)
		chain = append(chain, dir)
	}
	for _, dir := range slices.Backward(chain) {
		err := events.Add(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			c.unwatch(events, err)
			return false
		}
	}
	return true
}

func (c *CNI) unwatch(events *fsnotify.Watcher, err error) {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	if c.watch.closed {
		return
	}
	c.watch.events = nil
	events.Close()
	c.warnUnwatched(err)
}

// concerns says whether a path is the directory, above it or right below it.
func (c *CNI) concerns(path string) bool {
	dir := filepath.Clean(c.ConfDir)
	return filepath.Dir(path) == dir || path == dir || strings.HasPrefix(dir, strings.TrimSuffix(path, "/")+"/")
}

// reload reads the directory, and has STATUS asked when the configuration is a new one.
func (c *CNI) reload() {
	list, err := loadNetwork(c.ConfDir)
	c.watch.mu.Lock()
	changed := err == nil && (c.watch.list == nil || !sameNetwork(c.watch.list, list))
	if !changed && err == nil {
		list = c.watch.list
	}
	c.watch.list, c.watch.err = list, err
	c.watch.mu.Unlock()
	if changed {
		c.log().Info("using CNI network", "network", list.Name, "cniVersion", list.CNIVersion, "dir", c.ConfDir)
		c.askStatus(list)
	}
}

func sameNetwork(a, b *libcni.NetworkConfigList) bool {
	return slices.Equal(a.Bytes, b.Bytes) && slices.EqualFunc(a.Plugins, b.Plugins, func(x, y *libcni.PluginConfig) bool {
		return slices.Equal(x.Bytes, y.Bytes)
	})
}

// loadNetwork reads the file whose name sorts first, as the other runtimes do. If it cannot be read the node is not
// ready: the next one may be an entirely different network, and pods would end up where nobody put them.
func loadNetwork(dir string) (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(dir, []string{".conflist", ".conf", ".json"})
	if err != nil {
		return nil, fmt.Errorf("%w: cannot read CNI configurations: %w", ErrNotReady, err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%w: no CNI configuration in %s: install one or start with --network=builtin", ErrNotReady, dir)
	}
	slices.Sort(files)
	list, err := loadFile(files[0])
	if err != nil {
		return nil, fmt.Errorf("%w: cannot use CNI configuration %s: %w", ErrNotReady, files[0], err)
	}
	return list, nil
}

func loadFile(path string) (*libcni.NetworkConfigList, error) {
	if filepath.Ext(path) == ".conflist" {
		return libcni.NetworkConfFromFile(path)
	}
	//nolint:staticcheck // one plugin per file is deprecated, and the peers still take it
	single, err := libcni.ConfFromFile(path)
	if err != nil {
		return nil, err
	}
	if single.Network.Name == "" {
		return nil, errors.New("it has no name")
	}
	//nolint:staticcheck // as above
	return libcni.ConfListFromConf(single)
}

// Close ends the watch. Plugins are called as before.
func (c *CNI) Close() error {
	c.watch.mu.Lock()
	events := c.watch.events
	c.watch.events, c.watch.closed = nil, true
	c.watch.mu.Unlock()
	if events == nil {
		return nil
	}
	return events.Close()
}
