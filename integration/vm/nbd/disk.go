// Package nbd is a disk with a volatile write cache: what a machine has written but not flushed is lost when the power
// goes, or half of it, in any order. Killing a virtual machine alone does not show that, since all it ever handed to
// its host's kernel survives. qemu reaches the disk through the protocol of network block devices
// (github.com/NetworkBlockDevice/nbd, doc/proto.md).
package nbd

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
)

// Sector is the unit that a disk writes whole or not at all, in bytes.
const Sector = 512

// A Disk keeps unflushed sectors in memory and the others in a file.
type Disk struct {
	file *os.File
	size int64

	mu    sync.Mutex // guards cache
	cache map[int64][]byte
}

// Open takes a file as what is durable already.
func Open(path string) (*Disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size()%Sector != 0 {
		return nil, fmt.Errorf("%s does not end with a sector", path)
	}
	return &Disk{file: f, size: info.Size(), cache: map[int64][]byte{}}, nil
}

func (d *Disk) Close() error { return d.file.Close() }

// ReadAt sees what was written, flushed or not.
func (d *Disk) ReadAt(p []byte, at int64) (int, error) {
	if err := d.check(p, at); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock() // memory and page cache only; a sector must not move from one to the other meanwhile
	if n, err := d.file.ReadAt(p, at); err != nil {
		return n, err
	}
	for i := 0; i < len(p); i += Sector {
		if s := d.cache[at/Sector+int64(i/Sector)]; s != nil {
			copy(p[i:], s)
		}
	}
	return len(p), nil
}

// WriteAt puts data into the cache.
func (d *Disk) WriteAt(p []byte, at int64) (int, error) {
	if err := d.check(p, at); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := 0; i < len(p); i += Sector {
		d.cache[at/Sector+int64(i/Sector)] = slices.Clone(p[i : i+Sector])
	}
	return len(p), nil
}

func (d *Disk) check(p []byte, at int64) error {
	if at%Sector != 0 || len(p)%Sector != 0 || at < 0 || at+int64(len(p)) > d.size {
		return fmt.Errorf("no sectors: %d bytes at %d", len(p), at)
	}
	return nil
}

// Flush makes durable what was written before.
func (d *Disk) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := range d.cache {
		if err := d.settle(n); err != nil {
			return err
		}
	}
	return nil
}

// Force makes a range durable and leaves the rest to its fate, as FUA asks.
func (d *Disk) Force(at, length int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := at / Sector; n < (at+length)/Sector; n++ {
		if err := d.settle(n); err != nil {
			return err
		}
	}
	return nil
}

// settle moves a sector from the cache to the file.
func (d *Disk) settle(n int64) error {
	s := d.cache[n]
	if s == nil {
		return nil
	}
	if _, err := d.file.WriteAt(s, n*Sector); err != nil {
		return err
	}
	delete(d.cache, n)
	return nil
}

// Cut takes the power away: each unflushed sector had the luck to be written or is lost. survive is the share of the
// lucky ones, between 0 and 1.
func (d *Disk) Cut(random *rand.Rand, survive float64) (kept, lost int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range slices.Sorted(maps.Keys(d.cache)) { // in order, so that a seed repeats
		if random.Float64() >= survive {
			delete(d.cache, n)
			lost++
		} else if err := d.settle(n); err != nil {
			return kept, lost, err
		} else {
			kept++
		}
	}
	return kept, lost, nil
}
