package image

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// index is what the store knows, in memory: which images and layers are in place, and for whose sake layers must stay. None of
// its methods waits for disk or network. What is on disk changes first, in a turn of the store's; the index follows.
type index struct {
	layerDir func(digest.Digest) string
	pins     []string

	mu     sync.Mutex // guards what follows
	images map[digest.Digest]*entry
	layers map[digest.Digest]layerRecord // in place below layers/
	holds  map[digest.Digest]int         // by running pulls: layers that must not be collected now
	leases map[digest.Digest]time.Time   // of images: until when; see lease.go
	ghosts map[digest.Digest]*entry      // removed images whose lease still runs
	broken map[digest.Digest]*entry      // images that lack a layer; see broken.go
	// condemned layers are in place and damaged: in no index, but on disk until no broken image is left to replace them.
	condemned map[digest.Digest]bool
}

// clear forgets everything.
func (x *index) clear(layerDir func(digest.Digest) string, pins []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.layerDir, x.pins = layerDir, pins
	x.images, x.ghosts, x.broken = map[digest.Digest]*entry{}, map[digest.Digest]*entry{}, map[digest.Digest]*entry{}
	x.layers, x.condemned = map[digest.Digest]layerRecord{}, map[digest.Digest]bool{}
	x.holds, x.leases = map[digest.Digest]int{}, map[digest.Digest]time.Time{}
}

// entry is an image in the index.
type entry struct {
	record
	image *Image // never changed once it is here
}

func (e *entry) named(name Reference) bool {
	return slices.Contains(e.Tags, name.String()) || slices.Contains(e.Digests, name.String())
}

// entries are newest first.
func (x *index) entries() []*entry {
	x.mu.Lock()
	list := slices.Collect(maps.Values(x.images))
	x.mu.Unlock()
	return byAge(list)
}

func (x *index) brokenEntries() []*entry {
	x.mu.Lock()
	defer x.mu.Unlock()
	return byAge(slices.Collect(maps.Values(x.broken)))
}

func (x *index) find(ref string) (*entry, error) { return findIn(x.entries(), ref) }

// findBroken is find among broken images.
func (x *index) findBroken(ref string) (*entry, error) { return findIn(x.brokenEntries(), ref) }

// known finds an image for the platform that some repository calls by this manifest digest.
func (x *index) known(manifest digest.Digest, want ocispec.Platform) *entry {
	for _, e := range x.entries() {
		if (e.image.Config.Architecture == "" || fits(e.image.Config.Platform, want)) &&
			slices.ContainsFunc(e.Digests, func(d string) bool { return strings.HasSuffix(d, "@"+string(manifest)) }) {
			return e
		}
	}
	return nil
}

func (x *index) byID(id digest.Digest) *entry {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.images[id]
}

// brokenNames are those that an image had before it broke.
func (x *index) brokenNames(id digest.Digest) names {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.broken[id]; e != nil {
		return names{e.Tags, e.Digests}
	}
	return names{}
}

func (x *index) nextSequence() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	var highest uint64
	for _, list := range []map[digest.Digest]*entry{x.images, x.broken} {
		for _, e := range list {
			highest = max(highest, e.Sequence)
		}
	}
	return highest + 1
}

// enter takes in a record, and takes its tags from the images that had them, broken ones too: healed, they would take the
// tags back. It returns those images' records as they are to be written now.
func (x *index) enter(r record) (img *Image, changed []record) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, list := range []map[digest.Digest]*entry{x.images, x.broken} {
		for id, e := range list {
			if id == r.ID || !slices.ContainsFunc(e.Tags, func(t string) bool { return slices.Contains(r.Tags, t) }) {
				continue
			}
			old := e.record
			old.Tags = slices.DeleteFunc(slices.Clone(old.Tags), func(t string) bool { return slices.Contains(r.Tags, t) })
			list[id] = x.entry(old)
			changed = append(changed, old)
		}
	}
	e := x.entry(r)
	x.images[r.ID] = e
	delete(x.ghosts, r.ID)
	delete(x.broken, r.ID)
	return e.image, changed
}

// enterBroken takes in the record of an image that lacks a layer.
func (x *index) enterBroken(r record) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.broken[r.ID] = x.entry(r)
}

// entry makes the public face of a record. Called with mu held.
func (x *index) entry(r record) *entry {
	img := &Image{
		ID: r.ID, Tags: r.Tags, Digests: r.Digests, Size: r.Documents,
		Config: r.image, PulledAt: r.PulledAt, Pinned: x.pinned(r), Artifact: r.Artifact,
	}
	needs := r.needs()
	for i, id := range needs {
		// overlayfs refuses a directory that is given twice. Of equal layers the highest decides what is seen.
		if slices.Contains(needs[i+1:], id) {
			continue
		}
		l := x.layers[id]
		img.Layers = append(img.Layers, Layer{DiffID: id, Dir: filepath.Join(x.layerDir(id), "fs"), Size: l.Bytes})
		img.Size += l.Bytes
	}
	return &entry{r, img}
}

func (x *index) pinned(r record) bool {
	for _, p := range x.pins {
		if p == string(r.ID) {
			return true
		}
		name, err := ParseReference(p)
		if err == nil && (&entry{record: r}).named(name) {
			return true
		}
	}
	return false
}

// remove forgets an image, broken or not. A whole one haunts the store for the rest of its lease.
func (x *index) remove(e *entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, whole := x.images[e.ID]; whole {
		delete(x.images, e.ID)
		x.ghosts[e.ID] = e
	}
	delete(x.broken, e.ID)
}

// enterLayer takes in a layer that is in its place, whole.
func (x *index) enterLayer(l layerRecord) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.layers[l.DiffID] = l
	delete(x.condemned, l.DiffID)
}

func (x *index) has(id digest.Digest) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, ok := x.layers[id]
	return ok
}

// lacks names a layer of an image that is not in place, or nothing.
func (x *index) lacks(r record) digest.Digest {
	for _, id := range r.needs() {
		if !x.has(id) {
			return id
		}
	}
	return ""
}

// hold keeps a layer from being collected until release, whether or not it is here yet.
func (x *index) hold(id digest.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.holds[id]++
}

func (x *index) release(id digest.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.holds[id]--; x.holds[id] == 0 {
		delete(x.holds, id)
	}
}

func (x *index) layerRecords() []layerRecord {
	x.mu.Lock()
	defer x.mu.Unlock()
	list := slices.Collect(maps.Values(x.layers))
	slices.SortFunc(list, func(a, b layerRecord) int { return strings.Compare(string(a.DiffID), string(b.DiffID)) })
	return list
}

// condemnLayer makes a layer one that is damaged, and the images that need it broken. It returns them.
func (x *index) condemnLayer(id digest.Digest) (images []*entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.layers, id)
	x.condemned[id] = true
	for _, e := range x.images {
		if slices.Contains(e.needs(), id) {
			images = append(images, e)
		}
	}
	for _, e := range images {
		delete(x.images, e.ID)
		x.broken[e.ID] = e
	}
	return byAge(images)
}

// unneeded forgets the layers, whole and damaged ones, that neither an image nor a lease, a pull or a container needs, and lists
// them. Containers stand on the layers in used.
func (x *index) unneeded(used map[digest.Digest]bool) (whole []layerRecord, damaged []digest.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	needed := map[digest.Digest]bool{}
	x.expire()
	for _, list := range []map[digest.Digest]*entry{x.images, x.ghosts, x.broken} {
		for _, e := range list {
			for _, id := range e.needs() {
				needed[id] = true
			}
		}
	}
	free := func(id digest.Digest) bool { return !needed[id] && !used[id] && x.holds[id] == 0 }
	for id, l := range x.layers {
		if free(id) {
			whole = append(whole, l)
			delete(x.layers, id)
		}
	}
	for id := range x.condemned {
		if free(id) {
			damaged = append(damaged, id)
			delete(x.condemned, id)
		}
	}
	return whole, damaged
}

// used is what images and layers occupy, counted at unpack.
func (x *index) used() (bytes, inodes uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, l := range x.layers {
		b, i := l.used()
		bytes += uint64(b)
		inodes += uint64(i)
	}
	for _, e := range x.images {
		bytes += uint64(e.Documents)
		inodes++
	}
	return bytes, inodes
}

func byAge(list []*entry) []*entry {
	slices.SortFunc(list, func(a, b *entry) int { return cmp.Compare(b.Sequence, a.Sequence) })
	return list
}

const shortID = 4 // digits; fewer are more likely a slip than an id

// findIn prefers a name to a short id: an image may well be called cafe.
func findIn(list []*entry, ref string) (*entry, error) {
	hex := strings.TrimPrefix(ref, "sha256:")
	if imageID.MatchString(hex) {
		return only(ref, list, func(e *entry) bool { return e.ID.Encoded() == hex })
	}
	name, err := ParseReference(ref)
	if err == nil {
		e, missing := only(ref, list, func(e *entry) bool { return e.named(name) })
		if missing == nil || !maybeShort(hex) {
			return e, missing
		}
	}
	if maybeShort(hex) {
		return only(ref, list, func(e *entry) bool { return strings.HasPrefix(e.ID.Encoded(), hex) })
	}
	return nil, err
}

func maybeShort(hex string) bool {
	return len(hex) >= shortID && len(hex) < 64 && strings.Trim(hex, "0123456789abcdef") == ""
}

// only returns the newest match of a name, and refuses a short id that two images share.
func only(ref string, list []*entry, match func(*entry) bool) (*entry, error) {
	var found []*entry
	for _, e := range list {
		if match(e) {
			found = append(found, e)
		}
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("%w: %s", ErrNotFound, ref)
	case len(found) > 1 && maybeShort(strings.TrimPrefix(ref, "sha256:")):
		return nil, fmt.Errorf("%w: %s may be %s; give more of it", ErrAmbiguous, ref, candidates(found))
	}
	return found[0], nil
}

// candidates names images as a person tells them apart.
func candidates(list []*entry) string {
	var texts []string
	for _, e := range list {
		text := e.ID.Encoded()
		if len(e.Tags) > 0 {
			text += " (" + strings.Join(e.Tags, ", ") + ")"
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, " or ")
}
