// Package leftovers finds, from outside, everything of one engine instance that exists on the machine: processes,
// mounts, namespaces, cgroups, systemd units, links, addresses, packet filter rules, directories and open logs.
//
// It shares no code with what it accuses and asks the daemon nothing but which ids it knows. What it looks at are the
// kernel's own lists, systemd's, and the names that an instance gives to the things it makes: its directories, its cgroup, its
// bridge and table, and the 64 hex digits of pod and container ids.
//
// It changes nothing, and holds no lock, so what comes and goes while it looks may be seen or not. Ask when the engine rests.
package leftovers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Instance is one engine by the names of all it makes. An empty field is not searched.
type Instance struct {
	Root       string // directory of records and images, absolute
	State      string // directory of live things, absolute
	CgroupRoot string // cgroup of pods that name no parent, from the root of the hierarchy
	Bridge     string // of the built-in network
	NFTable    string // name of its nftables table; the names of its systemd units begin with it
}

// Kinds of findings.
const (
	Process    = "process"
	Mount      = "mount"
	Namespace  = "namespace"
	Cgroup     = "cgroup"
	Unit       = "systemd unit"
	Link       = "link"
	Address    = "address"
	Rule       = "nft rule"
	Directory  = "directory"
	Descriptor = "descriptor"
)

// Finding is one thing that should not be there.
type Finding struct {
	Kind   string
	Name   string // pid, path, link or key: what a human would type to look at it
	Detail string // what it is and why it is the instance's
}

func (f Finding) String() string { return f.Kind + " " + f.Name + ": " + f.Detail }

// Find lists what exists and belongs to nobody the engine knows, sorted by kind and name. live tells which pod and
// container ids the engine knows; nil: none. The bridge and the table are the engine's own and no leak; so is its cgroup.
//
// An error says what could not be looked at. The findings are valid all the same, but an empty list then proves nothing.
func (i Instance) Find(ctx context.Context, live func(id string) bool) ([]Finding, error) {
	s := &search{Instance: i.clean(), live: live}
	if live == nil {
		s.live = func(string) bool { return false }
	}
	err := errors.Join(
		s.cgroups(), // first: it learns which slices are in use, and which processes are in our cgroups
		s.units(ctx),
		s.processes(),
		s.mounts(),
		s.links(),
		s.records(),
		s.rules(),
		s.directories(),
	)
	slices.SortFunc(s.found, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Detail, b.Detail))
	})
	return slices.Compact(s.found), err
}

func (i Instance) clean() Instance {
	for _, dir := range []*string{&i.Root, &i.State} {
		if *dir != "" {
			*dir = filepath.Clean(*dir)
		}
	}
	if i.CgroupRoot != "" {
		i.CgroupRoot = path.Clean("/" + i.CgroupRoot)
	}
	return i
}

// search is one Find under way.
type search struct {
	Instance
	live     func(id string) bool
	groups   map[string][]string // cgroups below ours -> hierarchies that have them
	inCgroup map[int]string      // pids in cgroups of ours that belong to nobody, with the cgroup
	found    []Finding
}

func (s *search) add(kind, name, format string, args ...any) {
	s.found = append(s.found, Finding{Kind: kind, Name: name, Detail: fmt.Sprintf(format, args...)})
}

// idShape is a pod's or container's id, also inside a longer name such as evenkeel-<id>.scope.
var idShape = regexp.MustCompile(`[0-9a-f]{64}`)

// owned reports whether one of the ids in a name is known. A name without an id belongs to nobody.
func (s *search) owned(name string) bool {
	return slices.ContainsFunc(idShape.FindAllString(name, -1), s.live)
}

// below returns the part of name below dir; false if it is not below it. An empty dir has nothing below it.
func below(name, dir string) (rest string, ok bool) {
	if dir == "" || dir == "/" {
		return "", false
	}
	rest, ok = strings.CutPrefix(name, dir+"/")
	return rest, ok && rest != ""
}

// ours returns the part of a path below the instance's directories.
func (s *search) ours(name string) (rest string, ok bool) {
	if rest, ok = below(name, s.State); ok {
		return rest, ok
	}
	return below(name, s.Root)
}
