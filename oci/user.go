package oci

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ResolveUser decides the user from the request and the image's USER, given the image's /etc/passwd and /etc/group
// (nil when the image has none). A name that the image does not know is an error that names it.
//
// The request's user replaces the image's USER whole, its group included. Groups always holds the primary group, so that
// a file's group permissions cannot be escaped by setgid (CVE-2022-2989); it is sorted and has no doubles.
func ResolveUser(sc *cri.LinuxContainerSecurityContext, imageUser string, passwd, group []byte) (User, error) {
	name, groupName, err := wantedUser(sc, imageUser)
	if err != nil {
		return User{}, err
	}
	found, err := findUser(parsePasswd(passwd), name)
	if err != nil {
		return User{}, err
	}
	groups := parseGroups(group)
	if groupName != "" {
		if found.GID, err = findGroup(groups, groupName); err != nil {
			return User{}, err
		}
	}
	found.Groups, err = supplementary(sc, found, groups)
	return found, err
}

// wantedUser names the user and, when given, the group; each may be a number.
func wantedUser(sc *cri.LinuxContainerSecurityContext, imageUser string) (name, group string, err error) {
	uid, gid := sc.GetRunAsUser(), sc.GetRunAsGroup()
	switch {
	case uid != nil && sc.GetRunAsUsername() != "":
		return "", "", errors.New("security_context: only one of run_as_user and run_as_username may be given")
	case uid == nil && sc.GetRunAsUsername() == "" && gid != nil:
		return "", "", errors.New("security_context.run_as_group: given without run_as_user or run_as_username")
	case uid != nil:
		name = strconv.FormatInt(uid.GetValue(), 10)
	case sc.GetRunAsUsername() != "":
		name = sc.GetRunAsUsername()
	default:
		name, group, _ = strings.Cut(imageUser, ":")
	}
	if gid != nil {
		group = strconv.FormatInt(gid.GetValue(), 10)
	}
	return name, group, nil
}

// findUser takes a number as an id even if a user is called so, as Docker does. No name means root.
func findUser(users []passwdEntry, name string) (User, error) {
	if name == "" {
		name = "0"
	}
	id, numeric, err := parseID(name)
	if err != nil {
		return User{}, fmt.Errorf("user %s: %w", name, err)
	}
	i := slices.IndexFunc(users, func(u passwdEntry) bool {
		if numeric {
			return u.uid == id
		}
		return u.name == name
	})
	switch {
	case i >= 0:
		u := users[i]
		return User{UID: u.uid, GID: u.gid, Username: u.name, Home: orRoot(u.home)}, nil
	case numeric:
		return User{UID: id, Home: "/"}, nil
	}
	return User{}, fmt.Errorf("user %q is not in the image's /etc/passwd", name)
}

func orRoot(home string) string {
	if home == "" {
		return "/"
	}
	return home
}

func findGroup(groups []groupEntry, name string) (uint32, error) {
	id, numeric, err := parseID(name)
	if err != nil {
		return 0, fmt.Errorf("group %s: %w", name, err)
	}
	if numeric {
		return id, nil
	}
	for _, g := range groups {
		if g.name == name {
			return g.gid, nil
		}
	}
	return 0, fmt.Errorf("group %q is not in the image's /etc/group", name)
}

func supplementary(sc *cri.LinuxContainerSecurityContext, u User, groups []groupEntry) ([]uint32, error) {
	all := []uint32{u.GID}
	switch policy := sc.GetSupplementalGroupsPolicy(); policy {
	case cri.SupplementalGroupsPolicy_Merge:
		all = append(all, memberships(u.Username, groups)...)
	case cri.SupplementalGroupsPolicy_Strict:
	default:
		return nil, fmt.Errorf("security_context.supplemental_groups_policy: %d is not known", policy)
	}
	for _, gid := range sc.GetSupplementalGroups() {
		if gid < 0 || gid > math.MaxInt32 {
			return nil, fmt.Errorf("security_context.supplemental_groups: %d: %w", gid, errIDRange)
		}
		all = append(all, uint32(gid))
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func memberships(username string, groups []groupEntry) (gids []uint32) {
	for _, g := range groups {
		if username != "" && slices.Contains(g.members, username) {
			gids = append(gids, g.gid)
		}
	}
	return gids
}

// passwd(5) and group(5) are parsed here and not by a library because the usual one reads a malformed number as 0, which is root.
type passwdEntry struct {
	name     string
	uid, gid uint32
	home     string
}

type groupEntry struct {
	name    string
	gid     uint32
	members []string
}

func parsePasswd(data []byte) (entries []passwdEntry) {
	for fields := range colonLines(data, 4) {
		uid, okUID := entryID(fields[2])
		gid, okGID := entryID(fields[3])
		if !okUID || !okGID {
			continue
		}
		entry := passwdEntry{name: fields[0], uid: uid, gid: gid}
		if len(fields) > 5 {
			entry.home = fields[5]
		}
		entries = append(entries, entry)
	}
	return entries
}

func parseGroups(data []byte) (entries []groupEntry) {
	for fields := range colonLines(data, 3) {
		gid, ok := entryID(fields[2])
		if !ok {
			continue
		}
		entry := groupEntry{name: fields[0], gid: gid}
		if len(fields) > 3 && fields[3] != "" {
			entry.members = strings.Split(fields[3], ",")
		}
		entries = append(entries, entry)
	}
	return entries
}

// colonLines yields the lines that have at least the given number of fields; comments as glibc's parser allows them.
func colonLines(data []byte, fields int) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		for line := range strings.Lines(string(data)) {
			line = strings.TrimSpace(line)
			parts := strings.Split(line, ":")
			if strings.HasPrefix(line, "#") || len(parts) < fields || parts[0] == "" {
				continue
			}
			if !yield(parts) {
				return
			}
		}
	}
}

func entryID(field string) (uint32, bool) {
	id, numeric, err := parseID(field)
	return id, numeric && err == nil
}

// The runtime takes 32 bits, but a value above the signed range has wrapped to root in a peer (CVE-2024-40635).
var errIDRange = fmt.Errorf("an id is between 0 and %d", math.MaxInt32)

// parseID says whether the text is a number at all, and if so, whether it can be an id.
func parseID(text string) (id uint32, numeric bool, err error) {
	n, err := strconv.ParseInt(text, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrSyntax):
		return 0, false, nil
	case err != nil, n < 0, n > math.MaxInt32:
		return 0, true, errIDRange
	}
	return uint32(n), true, nil
}
