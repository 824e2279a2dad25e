package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// A program that can look a method up by a name it does not know in advance, as text/template does, keeps every exported
// method of every type it links: 6 MiB of the daemon's 35, part of which every node has in memory.
func TestProgramsKeepNoUnusedMethods(t *testing.T) {
	for _, name := range []string{"evenkeel", "evenkeel-shim"} {
		program, err := os.ReadFile(filepath.Join(bin, name))
		must(t, err)
		for _, function := range []string{"text/template.(*state).evalField", "html/template.(*escaper).escape"} {
			if bytes.Contains(program, []byte(function)) { // names of functions are there without symbols, too
				t.Errorf("%s links %s: a package or a call such as cobra's SetVersionTemplate brings it in", name, function)
			}
		}
		if !bytes.Contains(program, []byte("runtime.mallocgc")) {
			t.Errorf("%s shows no names of functions, so nothing can be said of it", name)
		}
		measured(t, "%s has %.1f MiB", name, float64(len(program))/(1<<20))
	}
}
