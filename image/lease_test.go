package image

import (
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func TestARemovedImageServesItsLease(t *testing.T) {
	h, s := newHub(t), newStore(t)
	s.Lease = 0
	ref := h.push(t, "app:1", imageOf(t, "", pack("gzip", file{"a", "1", 0})))
	img := pull(t, s, ref)
	if err := s.Remove(deadline(t), ref); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{ref, string(img.ID), img.Digests[0]} {
		if _, err := s.Get(name); !errors.Is(err, ErrNotFound) {
			t.Errorf("Get(%s) of a removed image: %v", name, err)
		}
		if found, err := s.Find(name); err != nil || found.ID != img.ID {
			t.Errorf("Find(%s) of a leased image: %v", name, err)
		}
	}
	if len(s.List()) != 0 {
		t.Error("it is still listed")
	}
	checkWhole(t, img)
	if err := s.Collect(deadline(t)); err != nil {
		t.Fatal(err)
	}
	checkWhole(t, img)
	h.forget()
	if again := pull(t, s, ref); again.ID != img.ID || h.asked("/blobs/"+string(digestOf(t, layerOf(t, h, ref)))) != 0 {
		t.Error("the layers of a leased image are fetched again")
	}
	if len(s.ghosts) != 0 {
		t.Error("a listed image is a ghost, too")
	}
	s.Remove(deadline(t), ref)
	reopen(t, s)
	tidy(t, s, 0, 0)
}

func TestALeaseEndsByItself(t *testing.T) {
	h, s := newHub(t), newStore(t)
	s.Lease = 3 * time.Second
	ref := h.push(t, "app:1", imageOf(t, "", pack("gzip", file{"a", "1", 0})))
	img := pull(t, s, ref)
	s.Remove(deadline(t), ref)
	checkWhole(t, img)
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(img.Layers[0].Dir); err != nil {
			break
		}
	}
	if _, err := s.Find(ref); !errors.Is(err, ErrNotFound) {
		t.Errorf("after the lease: %v", err)
	}
	tidy(t, s, 0, 0)
}

func TestLookingUpRenewsALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Store{Root: t.TempDir()}
		reopen(t, s)
		s.background.Wait()
		defer s.Close()
		s.enter(record{ID: "sha256:1", Tags: []string{"docker.io/library/a:1"}})
		time.Sleep(time.Hour)
		if _, err := s.Get("a:1"); err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(t.Context(), "a:1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(leaseTime - time.Second)
		if _, err := s.Find("a:1"); err != nil {
			t.Errorf("one second before the end: %v", err)
		}
		time.Sleep(leaseTime - time.Second)
		if _, err := s.Find("a:1"); err != nil {
			t.Errorf("finding it did not renew the lease: %v", err)
		}
		time.Sleep(leaseTime + time.Second)
		if _, err := s.Find("a:1"); !errors.Is(err, ErrNotFound) {
			t.Errorf("after the lease: %v", err)
		}
	})
}
