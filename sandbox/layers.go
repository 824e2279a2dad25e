package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/evenkeel/evenkeel/image"
)

// InUse lists the layers that containers stand on, for the image store.
func (p *Pods) InUse() map[digest.Digest]bool {
	used := map[digest.Digest]bool{}
	for _, c := range p.index.allContainers("") {
		for _, layer := range c.facts().allLayers() {
			used[layer.DiffID] = true
		}
	}
	for _, dir := range p.quarantined {
		for _, id := range layersMentioned(dir) {
			used[id] = true
		}
	}
	return used
}

// allLayers are those of the container's root and of its image volumes.
func (r *containerRecord) allLayers() []image.Layer {
	list := slices.Clone(r.Layers)
	for _, v := range r.Volumes {
		list = append(list, v.Layers...)
	}
	return list
}

// StandingOn names the pods that have a container on a layer which has not ended, as "namespace/name (id)". The layer's image need not exist
// any more.
func (p *Pods) StandingOn(layer digest.Digest) []string {
	names := []string{}
	for _, c := range p.index.allContainers("") {
		r := c.facts()
		if !r.FinishedAt.IsZero() || !slices.ContainsFunc(r.allLayers(), func(l image.Layer) bool { return l.DiffID == layer }) {
			continue
		}
		pod, err := p.index.pod(r.PodID)
		if err != nil {
			continue // it is being removed
		}
		m := pod.facts().Config.Message.GetMetadata()
		names = append(names, fmt.Sprintf("%s/%s (%s)", m.GetNamespace(), m.GetName(), r.PodID))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// layersMentioned reads what can still be read of a damaged record: a container that may live must not lose its layers.
func layersMentioned(dir string) (ids []digest.Digest) {
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return nil
	}
	for _, found := range layerShape.FindAllString(string(data), -1) {
		ids = append(ids, digest.Digest(found))
	}
	return ids
}

var layerShape = regexp.MustCompile(`sha256:[0-9a-f]{64}`)
