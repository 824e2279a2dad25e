package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/internal/effect"
)

// CNI runs the plugins that the node's first network configuration names (CNI specification 1.1).
//
// The configuration and the arguments of an ADD are written to Dir before it runs. Detach uses that record and never
// today's configuration: a pod is taken down by the plugins that put it up, also when the operator has changed
// networks in between. No record means that nothing was ever asked of a plugin, so nothing is held.
type CNI struct {
	ConfDir string        // /etc/cni/net.d
	BinDirs []string      // /opt/cni/bin, …
	Dir     string        // records, one per pod, and libcni's cache
	Timeout time.Duration // of one plugin call; 0: a minute
	Log     *slog.Logger

	turns     turns // one caller per pod id
	watch     watch
	check     check
	yielding  yielding
	abandoned abandoned
}

var (
	recordEffect       = effect.New("network.cni.record")
	addEffect          = effect.New("network.cni.add")
	delEffect          = effect.New("network.cni.del")
	removeRecordEffect = effect.New("network.cni.record.remove")
)

var _ Provider = (*CNI)(nil)

const defaultPluginTimeout = time.Minute

// Attach runs ADD. When it fails, DEL follows at once, as the specification asks for; only if that fails too does the
// pod still hold something, and Detach tries again.
func (c *CNI) Attach(ctx context.Context, pod Pod) (Result, error) {
	release, err := c.turns.take(ctx, pod.ID)
	if err != nil {
		return Result{}, err
	}
	defer release()
	result, err := c.attach(ctx, pod)
	if err != nil {
		return Result{}, fmt.Errorf("cannot attach pod %s to its CNI network: %w", pod.ID, err)
	}
	return result, nil
}

func (c *CNI) attach(ctx context.Context, pod Pod) (Result, error) {
	if result, done, err := c.resume(ctx, pod); done || err != nil {
		return result, err
	}
	list, err := c.network()
	if err != nil {
		return Result{}, err
	}
	if err := c.findPlugins(list); err != nil {
		return Result{}, err
	}
	rec, err := c.newRecord(list, pod)
	if err != nil {
		return Result{}, err
	}
	err = c.yielding.record(ctx, func() error {
		return recordEffect.Do(ctx, func() error { return c.write(rec) })
	})
	if err != nil {
		return Result{}, err
	}
	var result Result
	err = addEffect.Do(ctx, func() error { result, err = c.add(ctx, rec); return err })
	if err == nil {
		return result, nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	return Result{}, errors.Join(err, c.release(undo, rec))
}

// undoLimit bounds the DEL after a failed ADD, whose caller may have gone.
const undoLimit = 2 * time.Minute

// resume is for a pod that has a record: an ADD that ended gives its result again, one that was broken off is undone.
func (c *CNI) resume(ctx context.Context, pod Pod) (result Result, done bool, err error) {
	rec, err := c.read(pod.ID)
	if errors.Is(err, os.ErrNotExist) {
		c.guess(ctx, pod, err)
		return Result{}, false, nil
	}
	if err != nil {
		return Result{}, false, err
	}
	if rec.NetNS == pod.NetNS && rec.NetNSInode == inode(pod.NetNS) {
		if cached, err := c.cached(rec); err == nil {
			return cached, true, nil
		}
	}
	return Result{}, false, c.release(ctx, rec)
}

// cached is the result that libcni stored when ADD ended.
func (c *CNI) cached(rec *record) (Result, error) {
	list, err := rec.list()
	if err != nil {
		return Result{}, err
	}
	found, err := c.lib().GetNetworkListCachedResult(list, rec.runtime(rec.NetNS))
	if err != nil {
		return Result{}, err
	}
	if found == nil {
		return Result{}, os.ErrNotExist
	}
	return readResult(found)
}

func (c *CNI) add(ctx context.Context, rec *record) (Result, error) {
	list, err := rec.list()
	if err != nil {
		return Result{}, err
	}
	got, err := c.lib().AddNetworkList(ctx, list, rec.runtime(rec.NetNS))
	if err != nil {
		return Result{}, pluginError(list.Name, err)
	}
	return readResult(got)
}

// Detach runs DEL with the stored configuration and then removes the record. A nil error means that every plugin
// said that the pod holds nothing.
func (c *CNI) Detach(ctx context.Context, pod Pod) error {
	release, err := c.turns.take(ctx, pod.ID)
	if err != nil {
		return err
	}
	defer release()
	rec, err := c.read(pod.ID)
	if errors.Is(err, os.ErrNotExist) {
		c.guess(ctx, pod, err)
		return nil
	}
	if err == nil {
		err = c.release(ctx, rec)
	}
	if err != nil {
		return fmt.Errorf("cannot detach pod %s from its CNI network: %w", pod.ID, err)
	}
	return nil
}

func (c *CNI) release(ctx context.Context, rec *record) error {
	list, err := rec.list()
	if err != nil {
		return err
	}
	err = delEffect.Do(ctx, func() error {
		return pluginError(list.Name, c.lib().DelNetworkList(ctx, list, rec.runtime(livingNetNS(rec.NetNS))))
	})
	if err != nil {
		return err
	}
	return removeRecordEffect.Do(ctx, func() error { return c.remove(rec.PodID) })
}

// livingNetNS returns the path, or "" when no namespace is pinned there any more, which is how DEL is told so.
func livingNetNS(path string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil || fs.Type != unix.NSFS_MAGIC {
		return ""
	}
	return path
}

// Sweep runs DEL for every record whose pod is not live, and removes what a killed daemon left of writing one.
func (c *CNI) Sweep(ctx context.Context, live func(podID string) bool) error {
	ids, err := c.recorded("")
	if err != nil {
		return fmt.Errorf("cannot sweep CNI networks: %w", err)
	}
	errs := []error{c.removeHalfWritten(live)}
	for _, id := range ids {
		if !live(id) {
			errs = append(errs, c.Detach(ctx, Pod{ID: id}))
		}
	}
	return errors.Join(errs...)
}

// SetPodCIDR is passed to plugins with the capability "ipRanges", for pods that come from now on.
func (c *CNI) SetPodCIDR(cidr string) error {
	if strings.TrimSpace(cidr) == "" {
		return nil
	}
	if _, err := parseSubnets(cidr); err != nil {
		return fmt.Errorf("cannot use pod range %q: %w", cidr, err)
	}
	return writePodCIDR(c.Dir, cidr)
}

// Info names the configuration in use, and why there is none.
func (c *CNI) Info() map[string]any {
	info := map[string]any{"provider": "cni", "confDir": c.ConfDir, "binDirs": c.BinDirs}
	list, err := c.network()
	if err != nil {
		info["error"] = err.Error()
		return info
	}
	var plugins []string
	for _, p := range list.Plugins {
		plugins = append(plugins, p.Network.Type)
	}
	info["network"], info["cniVersion"], info["plugins"] = list.Name, list.CNIVersion, plugins
	if ids, err := c.recorded(""); err == nil {
		info["attached"] = len(ids)
	}
	if ids, err := c.recorded(damagedSuffix); err == nil && len(ids) > 0 {
		info["damagedRecords"] = ids
	}
	return info
}

// lib is a fresh client: it holds nothing but these values.
func (c *CNI) lib() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(c.BinDirs, filepath.Join(c.Dir, "cache"), &runner{timeout: c.timeout(), abandoned: &c.abandoned})
}

func (c *CNI) timeout() time.Duration {
	if c.Timeout == 0 {
		return defaultPluginTimeout
	}
	return c.Timeout
}

func (c *CNI) log() *slog.Logger {
	if c.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Log
}
