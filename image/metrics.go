package image

import (
	"errors"
	"sync/atomic"
	"time"
)

// counters grow as long as the store is used.
type counters struct {
	pulls, failed, unavailable, denied, corrupted atomic.Int64
	fetched, reused, corrupt, damaged             atomic.Int64
	downloaded, resumed, stalled                  atomic.Int64
	pulling                                       atomic.Int64
	nanoseconds                                   atomic.Int64
}

// Metrics is what the store has done since it was opened first. All but PullsRunning only grow.
type Metrics struct {
	Pulls           int64 // that ended, well or not
	PullsRunning    int64
	PullSeconds     float64 // of the pulls that ended well
	Failures        int64   // of Pulls; the next three are part of it
	Unavailable     int64   // ErrUnavailable
	Denied          int64   // ErrDenied
	Corrupt         int64   // ErrCorrupt
	LayersFetched   int64
	LayersReused    int64 // wanted by a pull and already here
	LayersRefused   int64 // that were not what their digest says; each may have come right from another host
	LayersDamaged   int64 // found on disk by a check
	BytesDownloaded int64 // of blobs, as transported
	Resumptions     int64 // of blobs, after a connection broke
	Stalls          int64 // connections given up for bringing too little
	Images, Layers  int   // in the store now
	Broken          int   // images that lack a layer now
	Bytes, Inodes   uint64
}

// Metrics reads the counters; it takes no lock that a slow operation holds.
func (s *Store) Metrics() Metrics {
	c := &s.count
	m := Metrics{
		Pulls: c.pulls.Load(), PullsRunning: c.pulling.Load(), PullSeconds: time.Duration(c.nanoseconds.Load()).Seconds(),
		Failures: c.failed.Load(), Unavailable: c.unavailable.Load(), Denied: c.denied.Load(), Corrupt: c.corrupted.Load(),
		LayersFetched: c.fetched.Load(), LayersReused: c.reused.Load(), LayersRefused: c.corrupt.Load(), LayersDamaged: c.damaged.Load(),
		BytesDownloaded: c.downloaded.Load(), Resumptions: c.resumed.Load(), Stalls: c.stalled.Load(),
	}
	m.Bytes, m.Inodes = s.FsInfo()
	m.Images, m.Layers, m.Broken = len(s.entries()), len(s.layerRecords()), len(s.brokenEntries())
	return m
}

// pulled counts a pull that ended.
func (c *counters) pulled(took time.Duration, err error) {
	c.pulls.Add(1)
	if err == nil {
		c.nanoseconds.Add(int64(took))
		return
	}
	c.failed.Add(1)
	for class, n := range map[error]*atomic.Int64{ErrUnavailable: &c.unavailable, ErrDenied: &c.denied, ErrCorrupt: &c.corrupted} {
		if errors.Is(err, class) {
			n.Add(1)
		}
	}
}
