// Package operator is what the CRI lacks for the engine's own command line: the progress of a pull, the import of an
// archive, and the inventory that a search for leftovers needs. It is a small gRPC service on the same unix socket.
//
// Everything the CRI can do goes through the CRI: the command line is a client like any other, so that each of its
// commands exercises what the kubelet uses, and works against what the kubelet sees. A method is added here only when
// no CRI call could carry its answer.
//
// Messages are plain structs in JSON; there is no protobuf schema to keep. Both ends belong to one release at a time,
// and unknown fields are ignored, so that a newer command line can talk to an older daemon across an upgrade.
package operator

import (
	"context"
	"encoding/json"
	"io"
)

// Service is the whole of it. The daemon implements it (Register), and Client is it from afar.
type Service interface {
	// Pull fetches an image. progress is called in turn, never after Pull has returned; nil: not wanted.
	Pull(ctx context.Context, req PullRequest, progress func(Progress)) (Result, error)
	// Import reads an OCI-layout or docker-save archive.
	Import(ctx context.Context, archive io.Reader, progress func(Progress)) (Result, error)
	Inventory(ctx context.Context) (Inventory, error)
	// Gone tells of pods that no list shows any more.
	Gone(ctx context.Context) (Gone, error)
	// CheckNetwork has the network look at a pod, which can take as long as its plugins take.
	CheckNetwork(ctx context.Context, req CheckNetworkRequest) (NetworkCheck, error)
	Images
}

// Gone is the pods that lately could not be made or were removed, newest first.
type Gone struct {
	Pods json.RawMessage `json:"pods"` // sandbox.GonePod's JSON
}

// CheckNetworkRequest names a ready pod.
type CheckNetworkRequest struct {
	Pod string `json:"pod"` // id
}

// NetworkCheck is what the network said of a pod.
type NetworkCheck struct {
	Status string `json:"status"` // ok, broken, or unknown where the network cannot tell
	Detail string `json:"detail,omitempty"`
}

// PullRequest names an image.
type PullRequest struct {
	Image    string `json:"image"`
	Platform string `json:"platform,omitempty"` // os/arch[/variant]; empty: the machine's
	Auth     *Auth  `json:"auth,omitempty"`
}

// Auth is credentials as the CRI knows them.
type Auth struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identityToken,omitempty"`
	RegistryToken string `json:"registryToken,omitempty"`
}

// String keeps credentials out of whatever prints a request.
func (Auth) String() string { return "(credentials)" }

// GoString does so for %#v.
func (a Auth) GoString() string { return a.String() }

// Progress of one layer. Reports about a layer may be left out when the reader is slow, never the last one.
type Progress struct {
	Layer string `json:"layer"` // digest of the blob
	Phase string `json:"phase"` // waiting, downloading, exists, done
	Done  int64  `json:"done"`  // compressed bytes read and unpacked so far
	Total int64  `json:"total"` // compressed size from the manifest
}

// Result of a Pull (one image) or an Import (those that the archive named).
type Result struct {
	Images []Image `json:"images"`
}

// Image is one image.
type Image struct {
	ID      string   `json:"id"`
	Tags    []string `json:"tags,omitempty"`
	Digests []string `json:"digests,omitempty"`
	Size    int64    `json:"size"` // bytes on disk
}

// Inventory is all that the engine knows to be its own; whatever else carries its naming is a leftover.
type Inventory struct {
	Pods       []string `json:"pods"`       // ids, sorted
	Containers []string `json:"containers"` // ids, sorted
	// Instance says how this daemon names what it makes: directories, bridge, nft table, cgroups. Main gives it.
	Instance json.RawMessage `json:"instance,omitempty"`
}
