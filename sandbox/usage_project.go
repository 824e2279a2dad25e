package sandbox

import (
	"encoding/hex"
	"errors"
	"time"

	"github.com/evenkeel/evenkeel/internal/projectquota"
)

// Where the file system counts by projects, each container's writable layer is one, and nothing is walked. The number
// stands in the record before it is used. It is derived from the container's id, from a range of our own, far from where
// others begin to count (1 by hand, 1048577 the kubelet); one that has files, a note in /etc/projects or another
// container is passed over. Nothing has to be given back: a project without files is none.
const (
	firstProject = 0xe0000000
	projectCount = 1 << 28
)

// probeProjects finds out, once, whether the engine's directory can have projects.
func (p *Pods) probeProjects() {
	err := projectquota.Probe(p.Root, projectAt(newID(), 0))
	switch {
	case err == nil:
		p.projects = true
		p.Log.Info("writable layers are counted by project quota", "dir", p.Root)
	case !errors.Is(err, errors.ErrUnsupported):
		p.Log.Warn("writable layers are counted by walking them", "dir", p.Root, "error", err)
	}
}

// projectTries is more than enough for 2^28 numbers, as long as nobody uses up our range.
const projectTries = 1000

func projectAt(id string, try int) uint32 {
	b, err := hex.DecodeString(id[:8])
	if err != nil {
		return firstProject + uint32(try)
	}
	derived := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	return firstProject + (derived+uint32(try))%projectCount
}

// claimProject notes the container's project, which is written with its first record. A container without one is walked.
func (c *creation) claimProject() {
	if !c.projects {
		return
	}
	reserved := projectquota.Reserved()
	for try := range projectTries {
		project := projectAt(c.id, try)
		bytes, inodes, err := projectquota.Usage(c.Root, project)
		if err == nil && !reserved[project] && bytes == 0 && inodes == 0 && c.takeProject(project) {
			return
		}
	}
	c.Log.Warn("the writable layer of a container is counted by walking it, as no project is free", "container", c.id)
}

func (c *creation) takeProject(project uint32) bool {
	c.claiming.Lock()
	defer c.claiming.Unlock()
	for _, other := range c.index.allContainers("") {
		if other.facts().Project == project {
			return false
		}
	}
	next := *c.facts()
	next.Project = project
	c.record.Store(&next)
	return true
}

// countedLayer asks the file system. What it says is of now.
func (c *container) countedLayer() (layerCount, bool) {
	project := c.facts().Project
	if project == 0 {
		return layerCount{}, false
	}
	bytes, inodes, err := projectquota.Usage(c.Root, project)
	return layerCount{at: time.Now(), bytes: bytes, inodes: inodes}, err == nil
}
