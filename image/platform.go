package image

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// thisMachine is the platform that images are chosen for. Variants beyond the base of an architecture (amd64/v3) are
// not asked for: their images are rare, and those without a variant run everywhere.
func thisMachine() ocispec.Platform {
	return normal(ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH, OSFeatures: []string{or32}})
}

// or32 among a wanted platform's features lets images of the architecture's 32-bit ancestor stand in, where there is no
// other and the machine turns out to run them. A pull that names its platform gets that one or nothing.
const or32 = "evenkeel.or32"

var ancestors = map[string]ocispec.Platform{
	"arm64": {OS: "linux", Architecture: "arm", Variant: "v8"},
	"amd64": {OS: "linux", Architecture: "386"},
}

// behind is the rank that any 32-bit image has at least: behind every 64-bit one.
const behind = 100

// normal writes a platform in one way only: arm64 is arm64/v8, arm is arm/v7, amd64/v1 is amd64.
func normal(p ocispec.Platform) ocispec.Platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(first(p.OS, "linux")), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	}
	switch {
	case p.Architecture == "arm64" && (p.Variant == "" || p.Variant == "8"):
		p.Variant = "v8"
	case p.Architecture == "arm" && p.Variant == "":
		p.Variant = "v7"
	case p.Architecture == "amd64" && p.Variant == "v1":
		p.Variant = ""
	}
	return p
}

// rank orders what an image is built for by how well it suits the wanted platform: 0 is exact, negative is unfit.
// An older variant of arm runs on a newer one; the newer the better. Nothing else stands in for another.
func rank(has, want ocispec.Platform) int {
	has, want = normal(has), normal(want)
	if older := ancestors[want.Architecture]; slices.Contains(want.OSFeatures, or32) && has.Architecture == older.Architecture {
		if r := rank(has, older); r >= 0 && runs32() {
			return behind + r
		}
	}
	if has.OS == want.OS && has.Architecture != want.Architecture && slices.Contains(want.OSFeatures, orEmulated) && emulates(has.Architecture) {
		return 2 * behind
	}
	if has.OS != want.OS || has.Architecture != want.Architecture {
		return -1
	}
	if has.Variant == want.Variant {
		return 0
	}
	variants := []string{"v9", "v8", "v7", "v6", "v5"}
	h, w := slices.Index(variants, has.Variant), slices.Index(variants, want.Variant)
	if strings.HasPrefix(has.Architecture, "arm") && h >= 0 && w >= 0 && h > w {
		return h - w
	}
	return -1
}

func fits(has, want ocispec.Platform) bool { return rank(has, want) >= 0 }

// choose returns the entry of an index that suits best, the first of equals, or nil.
func choose(list []ocispec.Descriptor, want ocispec.Platform) *ocispec.Descriptor {
	var best *ocispec.Descriptor
	least := -1
	for i, d := range list {
		if d.Platform == nil {
			continue
		}
		if r := rank(*d.Platform, want); r >= 0 && (best == nil || r < least) {
			best, least = &list[i], r
		}
	}
	return best
}

// platformError is ErrPlatform with what there is instead.
type platformError struct {
	want      ocispec.Platform
	available []ocispec.Platform
}

func (e *platformError) add(p ...ocispec.Platform) { e.available = append(e.available, p...) }

func (e *platformError) Error() string {
	var names []string
	for _, p := range e.available {
		if p.Architecture != "unknown" && !slices.Contains(names, platformName(p)) { // attestations
			names = append(names, platformName(p))
		}
	}
	if len(names) == 0 {
		names = []string{"nothing"}
	}
	text := fmt.Sprintf("%v: wanted %s, there is %s", ErrPlatform, platformName(e.want), strings.Join(names, ", "))
	if slices.Contains(e.want.OSFeatures, orEmulated) {
		text += "; use a digest of the image for this platform or of an index, or register an interpreter for the image's programs with binfmt_misc (flag F), as the package qemu-user-static does"
	}
	return text
}

func (e *platformError) Is(target error) bool { return target == ErrPlatform }

func platformName(p ocispec.Platform) string {
	name := first(p.OS, "linux") + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
}
