package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

const recordVersion = 1

// record is an image on disk.
type record struct {
	ID        digest.Digest `json:"id"`
	Tags      []string      `json:"tags,omitempty"`
	Digests   []string      `json:"digests,omitempty"`
	Mend      digest.Digest `json:"mend,omitempty"` // a layer on top of the config's; see mend.go
	Documents int64         `json:"documents"`      // bytes of config and manifest
	Sequence  uint64        `json:"sequence"`       // grows with every record; of two that have one tag the higher is right
	PulledAt  time.Time     `json:"pulledAt"`
	// Config is there byte for byte, since its digest is the id: the config document, or the manifest of an artifact.
	Config   []byte `json:"config"`
	Artifact string `json:"artifact,omitempty"` // the type of an OCI artifact; empty for images

	image  ocispec.Image   // Config, read
	layers []digest.Digest // lowest first, without the mend
}

// layerRecord is layer.json.
type layerRecord struct {
	DiffID digest.Digest `json:"diffID"`
	Blob   digest.Digest `json:"blob"` // as it was transported
	Bytes  int64         `json:"bytes"`
	Inodes int64         `json:"inodes"`
	// Implied are directories that the archive has no entry for; see layer.Stats.
	Implied []string `json:"implied,omitempty"`
	// How to tell that the layer is what was unpacked, and how to make its archive again. None of it: nobody can.
	Archive int64         `json:"archive,omitempty"` // bytes of the tar archive that layer.Replay makes
	Content digest.Digest `json:"content,omitempty"` // of that archive; empty for layers of images, where it is DiffID
	Recipe  int64         `json:"recipe,omitempty"`  // bytes of the recipe
	File    string        `json:"file,omitempty"`    // of an artifact: the only file, whose content is Blob
	Mend    bool          `json:"mend,omitempty"`
}

// overhead is what a layer occupies besides its files: two directories, layer.json, the recipe.
const overhead = 4 // inodes

func (l layerRecord) used() (bytes, inodes int64) { return l.Bytes + l.Recipe, l.Inodes + overhead }

// sealed is the envelope of both, so that a torn or edited file is seen as such.
type sealed struct {
	Version  int             `json:"version"`
	Checksum digest.Digest   `json:"checksum"` // of Body
	Body     json.RawMessage `json:"body"`
}

func seal(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return json.Marshal(sealed{recordVersion, digest.FromBytes(body), body})
}

func unseal(path string, v any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var s sealed
	if err := json.Unmarshal(text, &s); err != nil {
		return fmt.Errorf("%s is damaged: %w", path, err)
	}
	if s.Version != recordVersion {
		return fmt.Errorf("%s has version %d, this evenkeel reads version %d", path, s.Version, recordVersion)
	}
	if digest.FromBytes(s.Body) != s.Checksum {
		return fmt.Errorf("%s is damaged: its checksum does not match", path)
	}
	return json.Unmarshal(s.Body, v)
}

func readRecord(path string) (record, error) {
	var r record
	if err := unseal(path, &r); err != nil {
		return r, err
	}
	if digest.FromBytes(r.Config) != r.ID {
		return r, fmt.Errorf("%s is damaged: its config is not image %s", path, r.ID)
	}
	return r, r.read()
}

// read takes out of the config what the room needs of it.
func (r *record) read() error {
	if r.Artifact != "" {
		files, err := artifactFiles(r.Config)
		for _, f := range files {
			r.layers = append(r.layers, f.diffID)
		}
		return err
	}
	err := json.Unmarshal(r.Config, &r.image)
	r.layers = r.image.RootFS.DiffIDs
	return err
}

func readLayerRecord(dir string) (layerRecord, error) {
	var l layerRecord
	if err := unseal(filepath.Join(dir, "layer.json"), &l); err != nil {
		return l, err
	}
	if err := l.DiffID.Validate(); err != nil {
		return l, fmt.Errorf("%s names no layer: %w", dir, err)
	}
	if info, err := os.Lstat(filepath.Join(dir, "fs")); err != nil || !info.IsDir() {
		return l, fmt.Errorf("%s has no fs directory", dir)
	}
	return l, nil
}

// needs lists the layers of the image, lowest first.
func (r *record) needs() []digest.Digest {
	if r.Mend == "" {
		return r.layers
	}
	return append(slices.Clone(r.layers), r.Mend)
}

// add merges names into a record and reports whether that changed it.
func (r *record) add(n names) bool {
	before := len(r.Tags) + len(r.Digests)
	r.Tags = union(r.Tags, n.tags)
	r.Digests = union(r.Digests, n.digests)
	return len(r.Tags)+len(r.Digests) != before
}

func union(old, more []string) []string {
	all := slices.Clone(old)
	for _, m := range more {
		if !slices.Contains(all, m) {
			all = append(all, m)
		}
	}
	return all
}

// names are what an image is to be called.
type names struct{ tags, digests []string }

// writeDurable replaces a file so that after a power cut it holds the old content or the new one.
func writeDurable(path string, data []byte) error {
	temp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = temp.Write(data)
	if err == nil {
		err = temp.Sync()
	}
	err = errors.Join(err, temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		os.Remove(temp.Name())
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// syncAll makes everything on the file system of dir durable: one call for tens of thousands of new files.
func syncAll(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}
