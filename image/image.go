// Package image pulls, keeps and hands out OCI images: the only room that talks to registries and the only one that
// syncs to disk. An image that is listed is whole.
package image

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/evenkeel/evenkeel/image/layer"
)

// Store keeps images below one directory:
//
//	layers/<algorithm>-<hex>/fs       an unpacked layer, named by its diff ID; layer.json and recipe beside fs describe it, damaged condemns it
//	images/<hex>.json                 the record of an image; it exists only when all its layers are on disk
//	ingest/                           work in progress; Open clears it
//	trash/                            what is being deleted; Open goes on with it
//	aside/                            damaged layers that containers still stand on; see broken.go
//	boot                              the boot that the store was last used in; see boot.go
//
// A layer is unpacked in ingest, synced, and only then renamed to its place; the record follows last. So a crash at
// any moment leaves an image listed and whole, or not listed. Set the exported fields before Open.
type Store struct {
	Root     string // directory of its own
	HostsDir string // certs.d layout: <registry>/hosts.toml
	// InUse reports the layers (diff IDs) that running containers stand on; they outlive their image. Nil: none.
	// Open asks it as well, so it must be able to answer for the containers of a former run by then.
	InUse     func() map[digest.Digest]bool
	Pinned    []string // references that garbage collection must skip
	AuthFiles []string // config.json files of Docker's form, asked in order when a pull brings no credentials
	Preload   string   // directory of archives that are imported after Open, in the background; it need not exist
	Share     []string // hosts of mirrors that get the credentials of a pull, which else only the registry itself gets
	Parallel  int      // layers of one pull that are fetched and unpacked at a time; 0: 4
	// Lease is how long an image that was just pulled or looked up stays usable although it is removed; see Find. 0: two
	// minutes; negative: not at all.
	Lease  time.Duration
	Limits layer.Limits // of what one layer may cost; zero fields: layer.DefaultLimits
	// ArchiveBytes bounds what the files of one archive may have together, inflated: they are written to disk before anything
	// of the archive is used. 0: DefaultArchiveBytes.
	ArchiveBytes int64
	Log          *slog.Logger // nil: silent

	index
	pulls      flights[pullKey, *Image]
	unpacks    flights[digest.Digest, string] // by diff ID; the value is the directory in ingest
	turn       turn                           // held while images and layers appear or disappear on disk
	syncing    turn                           // of the one who syncs; see work.sync
	sweep      turn                           // of the one who empties the trash
	background sync.WaitGroup                 // deletions
	count      counters
	windows    chan struct{} // places for zstd layers being unpacked, for all pulls
	patience   time.Duration // with a stalled connection; 0: stallLimit
	answers    time.Duration // of one host, until a manifest or config is here; 0: documentLimit
	idleLimit  time.Duration // of a whole pull; 0: idleLimit

	lostSyncs atomic.Int64 // that failed

	mu     sync.Mutex         // guards what follows
	expiry *time.Timer        // of the ghosts, images that were removed within their lease
	chores context.Context    // of what the store does by itself, from Open to Close
	stop   context.CancelFunc // of chores
	closed bool
}

// Limits bound what one layer may cost.
type Limits = layer.Limits

// DefaultLimits is what Limits means where it is zero.
var DefaultLimits = layer.DefaultLimits

// Sentinels; errors carry the reference and the cure beside them.
var (
	ErrNotFound    = errors.New("image not found")
	ErrReference   = errors.New("invalid image reference")
	ErrAmbiguous   = errors.New("ambiguous short image id")
	ErrUnavailable = errors.New("registry unavailable") // every host failed by network, 5xx or 429
	ErrDenied      = errors.New("registry denied access")
	ErrPlatform    = errors.New("no image for this platform")
	ErrCorrupt     = errors.New("content does not match its digest")
	ErrArtifact    = errors.New("not a container image")
	ErrSubPath     = errors.New("unusable sub path") // of an image volume
)

// Image is one image as the CRI sees it. It is immutable.
type Image struct {
	ID       digest.Digest // of the config document; the CRI's image id everywhere
	Tags     []string      // fully qualified, docker.io/library/busybox:1.36
	Digests  []string      // repository@sha256:...
	Size     int64         // bytes on disk of its layers, known from the unpack
	Config   ocispec.Image
	Layers   []Layer // lowest first; it may have one more than Config.RootFS, see mend.go
	Pinned   bool
	PulledAt time.Time
	// Artifact is the type of an OCI artifact, which can be a volume but not a container; empty for images.
	Artifact string
}

// Layer is one unpacked layer.
type Layer struct {
	DiffID digest.Digest
	Dir    string // overlay lower directory
	Size   int64
}

// PullOptions of a Pull. The zero value pulls anonymously (or with configured credentials) for this machine.
type PullOptions struct {
	Auth     *Auth
	Platform *ocispec.Platform // nil: this machine's
	Progress func(Progress)    // called from several goroutines; must not block
}

// Auth as the CRI gives it. Never logged.
type Auth struct{ Username, Password, IdentityToken, RegistryToken string }

// Progress of one layer.
type Progress struct {
	Digest digest.Digest // of the blob
	Phase  string        // waiting, downloading, exists, done
	Done   int64         // compressed bytes read and unpacked so far
	Total  int64         // compressed size from the manifest
}
