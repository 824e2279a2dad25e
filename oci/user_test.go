package oci

import (
	"slices"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestResolveUser(t *testing.T) {
	const passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\nbad:x:12x:0::/:\nhuge:x:4294967296:0::/:\n007:x:8:8::/spy:\n"
	const group = "root:x:0:\nweb:x:1000:\nmedia:x:50000:web\nbroken:x:zero:web\n"
	id := func(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }
	for _, c := range []struct {
		name      string
		sc        *cri.LinuxContainerSecurityContext
		imageUser string
		files     bool
		want      User
	}{
		{"nothing said, no files", nil, "", false, User{Home: "/", Groups: []uint32{0}}},
		{"nothing said", nil, "", true, User{Username: "root", Home: "/root", Groups: []uint32{0}}},
		{"name", nil, "web", true, User{UID: 1000, GID: 1000, Username: "web", Home: "/home/web", Groups: []uint32{1000, 50000}}},
		{"id of a known user", nil, "1000", true, User{UID: 1000, GID: 1000, Username: "web", Home: "/home/web", Groups: []uint32{1000, 50000}}},
		{"id without files", nil, "1000", false, User{UID: 1000, Home: "/", Groups: []uint32{0}}},
		{"id and group", nil, "1000:5", true, User{UID: 1000, GID: 5, Username: "web", Home: "/home/web", Groups: []uint32{5, 50000}}},
		{"group only", nil, ":media", true, User{GID: 50000, Username: "root", Home: "/root", Groups: []uint32{50000}}},
		{"a number is an id, also if a user is called so", nil, "007", true, User{UID: 7, Home: "/", Groups: []uint32{0}}},
		{"request drops the image's group", &cri.LinuxContainerSecurityContext{RunAsUser: id(0)}, "web:media", true, User{Username: "root", Home: "/root", Groups: []uint32{0}}},
		{"name and group", &cri.LinuxContainerSecurityContext{RunAsUsername: "web", RunAsGroup: id(9)}, "", true, User{UID: 1000, GID: 9, Username: "web", Home: "/home/web", Groups: []uint32{9, 50000}}},
		{"strict", &cri.LinuxContainerSecurityContext{RunAsUser: id(1000), SupplementalGroups: []int64{3, 2, 3}, SupplementalGroupsPolicy: cri.SupplementalGroupsPolicy_Strict}, "", true, User{UID: 1000, GID: 1000, Username: "web", Home: "/home/web", Groups: []uint32{2, 3, 1000}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p, g []byte
			if c.files {
				p, g = []byte(passwd), []byte(group)
			}
			got, err := ResolveUser(c.sc, c.imageUser, p, g)
			must(t, err)
			if got.UID != c.want.UID || got.GID != c.want.GID || got.Username != c.want.Username || got.Home != c.want.Home || !slices.Equal(got.Groups, c.want.Groups) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// A line whose number cannot be read must not become root.
func TestMalformedPasswdLineIsNoUser(t *testing.T) {
	for _, name := range []string{"bad", "huge", "short"} {
		u, err := ResolveUser(nil, name, []byte("bad:x:12x:0::/:\nhuge:x:4294967296:0::/:\nshort:x:5\n"), nil)
		if err == nil {
			t.Errorf("%s resolved to %+v", name, u)
		}
	}
}
