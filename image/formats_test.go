package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// tarParts are the pieces of an archive: one for each entry, and the end.
func tarParts(t *testing.T, files ...file) (parts [][]byte) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		header := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.content)), Typeflag: tar.TypeReg, ModTime: time.Unix(1700000000, 0)}
		if err := errors.Join(w.WriteHeader(header), second(w.Write([]byte(f.content))), w.Flush()); err != nil {
			t.Fatal(err)
		}
		parts = append(parts, bytes.Clone(b.Bytes()))
		b.Reset()
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append(parts, b.Bytes())
}

func second(_ int, err error) error { return err }

// memberOf is one gzip member.
func memberOf(t *testing.T, data, extra []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w.Extra = extra
	if err := errors.Join(second(w.Write(data)), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// estargz is a layer as github.com/containerd/stargz-snapshotter/estargz writes it (docs/estargz.md there): a gzip member for
// each chunk of a file, one with the table of contents, which is an entry of the archive, and an empty one whose header's
// extra field says where the table begins.
func estargz(t *testing.T, files ...file) testLayer {
	t.Helper()
	files = append(files, file{"stargz.index.json", `{"version":1,"entries":[]}`, 0})
	var l testLayer
	table := 0
	for i, part := range tarParts(t, files...) {
		if i == len(files)-1 {
			table = len(l.packed)
		}
		l.plain = append(l.plain, part...)
		half := len(part) / 2 // a large file has several chunks
		l.packed = append(append(l.packed, memberOf(t, part[:half], nil)...), memberOf(t, part[half:], nil)...)
	}
	l.packed = append(l.packed, memberOf(t, nil, append([]byte("SG\x16\x00"), fmt.Sprintf("%016xSTARGZ", table)...))...)
	l.media = types.OCILayer
	return l
}

// zstdChunked is a layer as containers/storage writes it: a frame for each chunk, and skippable frames (RFC 8878, section
// 3.1.2) with the table of contents and, last, its place.
func zstdChunked(t *testing.T, files ...file) testLayer {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	skippable := func(data []byte) []byte {
		return append(binary.LittleEndian.AppendUint32([]byte{0x50, 0x2a, 0x4d, 0x18}, uint32(len(data))), data...)
	}
	var l testLayer
	for _, part := range tarParts(t, files...) {
		l.plain = append(l.plain, part...)
		l.packed = w.EncodeAll(part, l.packed)
	}
	at := len(l.packed)
	table := w.EncodeAll([]byte(`{"version":1,"entries":[]}`), nil)
	l.packed = append(l.packed, skippable(table)...)
	footer := binary.LittleEndian.AppendUint64(nil, uint64(at+8))
	footer = binary.LittleEndian.AppendUint64(footer, uint64(len(table)))
	footer = append(footer, make([]byte, 40)...)
	l.packed = append(l.packed, skippable(append(footer, "GNUlInUx"...))...)
	l.media = types.OCILayerZStd
	return l
}

// TestPullSeekableLayers: formats for lazy pulling are ordinary layers to who reads them whole.
func TestPullSeekableLayers(t *testing.T) {
	files := []file{{"a", "first", 0}, {"big", noise(3, 300<<10), 0}, {"z", strings.Repeat("text ", 50_000), 0}}
	members := pack("", files...)
	members.packed, members.media = nil, types.OCILayer
	for i := 0; i < len(members.plain); i += 10_000 { // as pigz and bgzip do, without regard to entries
		members.packed = append(members.packed, memberOf(t, members.plain[i:min(len(members.plain), i+10_000)], nil)...)
	}
	for name, layer := range map[string]testLayer{"estargz": estargz(t, files...), "zstd-chunked": zstdChunked(t, files...), "members": members} {
		t.Run(name, func(t *testing.T) {
			h, s := newHub(t), newStore(t)
			img := pull(t, s, h.push(t, name+":1", imageOf(t, "", layer)))
			for _, f := range files {
				if got := content(t, img, 0, f.name); got != f.content {
					t.Errorf("%s has %d bytes, want %d", f.name, len(got), len(f.content))
				}
			}
			// The recipe makes the archive again, and its digest is that of the manifest.
			if report, err := s.Check(t.Context(), false, nil); err != nil || len(report.Damages)+len(report.Unverifiable) > 0 {
				t.Errorf("%+v, %v", report, err)
			}
			if img.Layers[0].DiffID != digest.FromBytes(layer.plain) {
				t.Errorf("diff id %s", img.Layers[0].DiffID)
			}
		})
	}
}

// TestPullNestedIndexesWithVariants has an index for each family inside another one, as some vendors publish.
func TestPullNestedIndexesWithVariants(t *testing.T) {
	h := newHub(t)
	index := func(platforms ...string) v1.ImageIndex {
		images := map[string]v1.Image{}
		for _, p := range platforms {
			images[p] = imageOf(t, p, pack("gzip", file{"platform", p, 0}))
		}
		return indexOf(images)
	}
	nest := func(inner ...v1.ImageIndex) v1.ImageIndex {
		var adds []mutate.IndexAddendum
		for _, i := range inner {
			adds = append(adds, mutate.IndexAddendum{Add: i})
		}
		return mutate.AppendManifests(empty.Index, adds...)
	}
	all := h.push(t, "all:1", nest(index("linux/arm/v5", "linux/arm/v6", "linux/arm/v7"), nest(index("linux/arm64/v8", "linux/amd64"))))
	for _, c := range []struct{ want, got string }{
		{"linux/arm64", "linux/arm64/v8"}, {"linux/arm64/v8", "linux/arm64/v8"}, {"linux/amd64", "linux/amd64"},
		{"linux/arm", "linux/arm/v7"}, {"linux/arm/v6", "linux/arm/v6"}, {"linux/arm/v8", "linux/arm/v7"}, {"linux/arm/v5", "linux/arm/v5"},
	} {
		if got := chosen(t, all, parsePlatform(c.want), false); got != c.got {
			t.Errorf("%s gave %s, want %s", c.want, got, c.got)
		}
	}
}

// TestPull32BitStandsIn: the 32-bit ancestor's image is taken where there is no other, where this machine runs such programs,
// and where the pull named no platform.
// TestIndexesWithoutEnd: an index of indexes without platforms is searched so far and no farther.
func TestIndexesWithoutEnd(t *testing.T) {
	entry := `{"digest":"` + digest.FromString("x").String() + `"}`
	src := &counted{source: echo(`{"manifests":[` + strings.Repeat(entry+",", 999) + entry + `]}`)}
	_, err := makePlan(t.Context(), src, ocispec.Descriptor{Digest: digest.FromString("x")}, thisMachine())
	if !errors.Is(err, ErrCorrupt) || src.asked != manifestsPerPull {
		t.Errorf("%d manifests fetched, %v", src.asked, err)
	}
}

type counted struct {
	source
	asked int
}

func (c *counted) manifest(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if c.asked++; c.asked > 10*manifestsPerPull {
		return nil, errors.New("enough")
	}
	return c.source.manifest(ctx, d)
}

func TestPull32BitStandsIn(t *testing.T) {
	h := newHub(t)
	publish := func(name string, platforms ...string) string {
		images := map[string]v1.Image{}
		for _, p := range platforms {
			images[p] = imageOf(t, p, pack("gzip", file{"platform", p, 0}))
		}
		return h.push(t, name+":1", indexOf(images))
	}
	if32 := func(p string) string {
		if runs32() {
			return p
		}
		return "none"
	}
	for _, c := range []struct {
		ref, want string
		standIn   bool
		got       string
	}{
		{publish("a", "linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm/v8"), "linux/arm64", true, if32("linux/arm/v8")},
		{publish("b", "linux/arm/v5", "linux/arm/v7", "linux/arm/v6"), "linux/arm64", true, if32("linux/arm/v7")},
		{publish("c", "linux/arm/v7", "linux/arm64"), "linux/arm64", true, "linux/arm64"},
		{publish("d", "linux/386", "linux/arm/v7"), "linux/amd64", true, if32("linux/386")},
		{publish("e", "linux/386", "linux/amd64"), "linux/amd64", true, "linux/amd64"},
		{publish("f", "linux/arm/v7", "linux/386"), "linux/arm64", false, "none"},
		{publish("g", "linux/arm/v7", "linux/386"), "linux/amd64", false, "none"},
		{publish("h", "linux/arm64", "linux/amd64"), "linux/arm/v7", true, "none"}, // never the other way round
	} {
		if got := chosen(t, c.ref, parsePlatform(c.want), c.standIn); got != c.got {
			t.Errorf("%s on %s (32-bit images may stand in: %v) gave %s, want %s", c.ref, c.want, c.standIn, got, c.got)
		}
	}
}

// chosen pulls for a platform and returns what the image was built for.
func chosen(t *testing.T, ref string, p v1.Platform, standIn bool) string {
	t.Helper()
	want := ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
	if standIn {
		want.OSFeatures = []string{or32}
	}
	img, err := newStore(t).Pull(deadline(t), ref, PullOptions{Platform: &want})
	if errors.Is(err, ErrPlatform) {
		return "none"
	}
	if err != nil {
		t.Fatal(err)
	}
	return content(t, img, 0, "platform")
}
