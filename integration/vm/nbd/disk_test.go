package nbd

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func blank(t *testing.T) *Disk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 64*Sector), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func (d *Disk) fill(t *testing.T, sector int64, count int, b byte) {
	t.Helper()
	if _, err := d.WriteAt(bytes.Repeat([]byte{b}, count*Sector), sector*Sector); err != nil {
		t.Fatal(err)
	}
}

// bytes returns the first byte of each sector.
func (d *Disk) bytes(t *testing.T) string {
	t.Helper()
	all := make([]byte, d.size)
	if _, err := d.ReadAt(all, 0); err != nil {
		t.Fatal(err)
	}
	var first []byte
	for i := 0; i < len(all); i += Sector {
		first = append(first, all[i]|'0')
	}
	return string(first[:12])
}

func TestWhatAPowerCutTakes(t *testing.T) {
	for _, c := range []struct {
		name    string
		survive float64
		want    string
	}{
		{"nothing unflushed survives", 0, "112220000000"},
		{"all survives", 1, "133334400000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := blank(t)
			d.fill(t, 0, 3, '1')
			if err := d.Flush(); err != nil {
				t.Fatal(err)
			}
			d.fill(t, 2, 3, '2')
			if err := d.Force(2*Sector, 3*Sector); err != nil {
				t.Fatal(err)
			}
			d.fill(t, 1, 4, '3')
			d.fill(t, 5, 2, '4')
			if got := d.bytes(t); got != "133334400000" {
				t.Errorf("before the cut the disk reads %s", got)
			}
			if _, _, err := d.Cut(rand.New(rand.NewPCG(1, 2)), c.survive); err != nil {
				t.Fatal(err)
			}
			if got := d.bytes(t); got != c.want {
				t.Errorf("after the cut the disk reads %s, want %s", got, c.want)
			}
		})
	}
}

func TestACutInTheMiddle(t *testing.T) {
	d := blank(t)
	d.fill(t, 0, 64, '1')
	kept, lost, err := d.Cut(rand.New(rand.NewPCG(1, 2)), 0.5)
	if err != nil || kept+lost != 64 || kept < 16 || lost < 16 {
		t.Errorf("kept %d, lost %d, %v", kept, lost, err)
	}
}

func TestWritesOutsideAreRefused(t *testing.T) {
	d := blank(t)
	for _, at := range []int64{-Sector, 1, 64 * Sector, 63*Sector + 1} {
		if _, err := d.WriteAt(make([]byte, Sector), at); err == nil {
			t.Errorf("a write at %d was taken", at)
		}
	}
}
