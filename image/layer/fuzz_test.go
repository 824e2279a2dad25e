package layer

import (
	"bytes"
	"testing"
)

// FuzzRecipe: a damaged recipe is an error and nothing worse.
func FuzzRecipe(f *testing.F) {
	dir := f.TempDir()
	_, recipe := unpackWithRecipe(f, dir, archive(f, directory("a"), file("a/b", "content"), symlink("c", "a/b")))
	f.Add(recipe)
	f.Fuzz(func(t *testing.T, recipe []byte) {
		r, err := Replay(dir, bytes.NewReader(recipe))
		if err != nil {
			return
		}
		defer r.Close()
		var total int
		for buffer := make([]byte, 64<<10); total < 16<<20; {
			n, err := r.Read(buffer)
			if total += n; err != nil {
				break
			}
		}
	})
}
