package systemd

import (
	"errors"
	"strings"
	"testing"
)

func TestSlicePath(t *testing.T) {
	for slice, want := range map[string]string{
		"a.slice": "/a.slice", "-.slice": "/", "system.slice": "/system.slice",
		"kubepods-besteffort-pod0a_1b.slice": "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0a_1b.slice",
	} {
		if got, err := SlicePath(slice); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", slice, got, err, want)
		}
	}
	for _, slice := range []string{"", ".slice", "a", "a.scope", "a/b.slice", "a--b.slice", "-a.slice", "a-.slice", "--.slice"} {
		if got, err := SlicePath(slice); !errors.Is(err, ErrSlice) {
			t.Errorf("%q is taken for a slice at %q (%v)", slice, got, err)
		}
	}
}

func TestParentPath(t *testing.T) {
	const pod = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice"
	for _, parent := range []string{pod, pod + "/", "kubepods-burstable-podx.slice"} {
		if got, err := ParentPath(parent); err != nil || got != pod {
			t.Errorf("%s: %q, %v", parent, got, err)
		}
	}
	for _, parent := range []string{"/kubepods/besteffort/podx", "/", ""} {
		if _, err := ParentPath(parent); !errors.Is(err, ErrSlice) {
			t.Errorf("%q: %v", parent, err)
		}
	}
}

func TestScopes(t *testing.T) {
	id := strings.Repeat("0f", 32)
	for _, prefix := range []string{"evenkeel", "evenkeel-0a1b2c3d"} {
		u := &Units{Prefix: prefix}
		if got, ok := u.idOf(u.Scope(id)); !ok || got != id {
			t.Errorf("%s: %q, %v", u.Scope(id), got, ok)
		}
		for _, other := range []string{"evenkeel-shims.scope", "evenkeel-11111111-" + id + ".scope", prefix + "-" + id + ".service", prefix + "-" + id[2:] + ".scope"} {
			if _, ok := u.idOf(other); ok {
				t.Errorf("%s takes %s for its own", prefix, other)
			}
		}
		if got, want := u.SpecPath("/a.slice/a-b.slice/"+u.Scope(id), id), "a-b.slice:"+prefix+":"+id; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if got, want := u.SpecPath("/"+u.Scope(id), id), "-.slice:"+prefix+":"+id; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
