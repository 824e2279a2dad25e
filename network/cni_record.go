package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/internal/atomicfile"
)

// A record is all that ADD was called with, and so all that DEL needs.
type record struct {
	Version      int
	PodID        string
	Network      string // name of the network
	CNIVersion   string
	Plugins      []json.RawMessage
	DisableCheck bool `json:",omitempty"`
	NetNS        string
	NetNSInode   uint64 // tells a namespace from a later one at the same path
	Args         [][2]string
	Capabilities map[string]any
}

const recordVersion = 1

// A file of a record. The sum finds a file that a power cut left short or empty; nothing here is synced.
type recordFile struct {
	Sum    uint32 // CRC-32 (IEEE) of Record
	Record json.RawMessage
}

var errDamaged = errors.New("record is damaged")

func (c *CNI) newRecord(list *libcni.NetworkConfigList, pod Pod) (*record, error) {
	capabilities, err := capabilityArgs(pod, readPodCIDR(c.Dir))
	if err != nil {
		return nil, err
	}
	rec := &record{Version: recordVersion, PodID: pod.ID, Network: list.Name, CNIVersion: list.CNIVersion, DisableCheck: list.DisableCheck,
		NetNS: pod.NetNS, NetNSInode: inode(pod.NetNS), Args: runtimeArgs(pod), Capabilities: capabilities}
	for _, p := range list.Plugins {
		rec.Plugins = append(rec.Plugins, p.Bytes)
	}
	return rec, nil
}

func inode(path string) uint64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Ino
}

// list is the configuration as it was, with the plugins that came from files of their own inlined.
func (r *record) list() (*libcni.NetworkConfigList, error) {
	data, err := json.Marshal(map[string]any{"name": r.Network, "cniVersion": r.CNIVersion, "plugins": r.Plugins, "disableCheck": r.DisableCheck})
	if err != nil {
		return nil, err
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("cannot read the stored configuration of network %s: %w", r.Network, err)
	}
	return list, nil
}

func (r *record) runtime(netNS string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: r.PodID, NetNS: netNS, IfName: podInterface, Args: r.Args, CapabilityArgs: r.Capabilities}
}

func (c *CNI) path(podID string) string { return filepath.Join(c.Dir, podID+recordSuffix) }

const recordSuffix, damagedSuffix = ".json", ".damaged"

func (c *CNI) write(rec *record) error {
	data, err := json.Marshal(rec)
	if err == nil {
		data, err = json.Marshal(recordFile{crc32.ChecksumIEEE(data), data})
	}
	if err != nil {
		return fmt.Errorf("cannot store the network of pod %s: %w", rec.PodID, err)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fmt.Errorf("cannot store the network of pod %s: %w", rec.PodID, err)
	}
	return atomicfile.Write(c.path(rec.PodID), data, 0o600)
}

// load returns the pod's record; the error matches fs.ErrNotExist when there is none, and errDamaged when it is no good.
func (c *CNI) load(podID string) (*record, error) {
	data, err := os.ReadFile(c.path(podID))
	if err != nil {
		return nil, err
	}
	return parseRecord(data)
}

// read is load for who goes on without a damaged record: its error matches both. Records are renamed into place whole, so only a power
// cut damages one. The file is set aside for an operator.
func (c *CNI) read(podID string) (*record, error) {
	rec, err := c.load(podID)
	if !errors.Is(err, errDamaged) {
		return rec, err
	}
	aside := c.path(podID) + damagedSuffix
	c.log().Error("set aside the network record of a pod", "pod", podID, "file", aside, "error", err)
	if err := os.Rename(c.path(podID), aside); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("network of pod %s: %w: %w", podID, err, fs.ErrNotExist)
}

// guess makes the best of a damaged record: most plugins find what a pod holds by its id, and in all likelihood the network
// is the one that is configured now. What they keep beyond that, GC collects. Nobody waits for its
// success: there is nothing left by which it could be tried again.
func (c *CNI) guess(ctx context.Context, pod Pod, read error) {
	if !errors.Is(read, errDamaged) {
		return
	}
	list, err := c.network()
	var rec *record
	if err == nil {
		rec, err = c.newRecord(list, pod)
	}
	if err == nil {
		err = c.release(ctx, rec)
	}
	if err != nil {
		c.log().Error("cannot free what a pod with a damaged network record holds", "pod", pod.ID, "error", err)
	}
}

func parseRecord(data []byte) (*record, error) {
	var file recordFile
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if sum := crc32.ChecksumIEEE(file.Record); sum != file.Sum {
		return nil, fmt.Errorf("%w: its sum is %08x, not %08x", errDamaged, sum, file.Sum)
	}
	var rec record
	if err := json.Unmarshal(file.Record, &rec); err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return &rec, nil
}

func (c *CNI) remove(podID string) error {
	err := os.Remove(c.path(podID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// removeHalfWritten removes temporary files of internal/atomicfile, ".ID.json.1234". A living pod's may be in use just now.
func (c *CNI) removeHalfWritten(live func(podID string) bool) error {
	entries, err := os.ReadDir(c.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		id, _, temporary := strings.Cut(e.Name(), recordSuffix+".")
		id, hidden := strings.CutPrefix(id, ".")
		if !temporary || !hidden || live(id) {
			continue
		}
		if err := os.Remove(filepath.Join(c.Dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// recorded lists the pods that have a record, or with a further suffix those whose record was set aside.
func (c *CNI) recorded(further string) ([]string, error) {
	entries, err := os.ReadDir(c.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), recordSuffix+further); ok && !strings.HasPrefix(id, ".") {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
