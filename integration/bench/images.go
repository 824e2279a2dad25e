package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/evenkeel/evenkeel/integration/registry"
)

// pauseProgram is what containerd's sandbox container runs: busybox under a name of its own, so that it can be counted.
const pauseProgram = "/bin/pause-of-bench"

// publish serves the images of the benchmark.
func publish(o options) (*registry.Registry, error) {
	files, err := registry.BusyboxFiles()
	if err != nil {
		return nil, err
	}
	files = append(files, registry.File{Name: pauseProgram[1:], Mode: 0o755, Content: []byte("#!/bin/sh\ntrap 'exit 0' TERM INT\nwhile :; do sleep 100000 & wait $!; done\n")})
	layer, err := registry.Layer(files...)
	if err != nil {
		return nil, err
	}
	r := registry.Serve()
	for name, config := range map[string]v1.Config{
		"busybox:latest": {Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}},
		"pause:latest":   {Cmd: []string{pauseProgram}, Env: []string{"PATH=/bin"}},
	} {
		img, err := registry.Image(config, layer)
		if err == nil {
			_, err = r.Push(name, img)
		}
		if err != nil {
			r.Close()
			return nil, err
		}
	}
	if o.wants("pull") {
		if err := publishBig(r, o.PullMiB); err != nil {
			r.Close()
			return nil, err
		}
	}
	return r, nil
}

// publishBig makes eight:1, of eight layers, and one:1, of one layer of the same size: files of a few KiB to a few MiB,
// compressible to about a third, as programs and libraries are.
func publishBig(r *registry.Registry, mib int) error {
	for name, layers := range map[string]int{"eight:1": 8, "one:1": 1} {
		var list []v1.Layer
		for i := range layers {
			layer, err := bigLayer(uint64(i+layers), mib<<20/layers)
			if err != nil {
				return err
			}
			list = append(list, layer)
		}
		img, err := registry.Image(v1.Config{Cmd: []string{"sh"}}, list...)
		if err != nil {
			return err
		}
		if _, err := r.Push(name, img); err != nil {
			return err
		}
	}
	return nil
}

func bigLayer(seed uint64, size int) (v1.Layer, error) {
	random := rand.New(rand.NewPCG(seed, 1))
	var files []registry.File
	for n := 0; size > 0; n++ {
		length := min(size, 4096<<random.IntN(9))
		files = append(files, registry.File{Name: fmt.Sprintf("d%d/f%d", n%50, n), Mode: 0o644, Content: text(random, length)})
		size -= length
	}
	return registry.Layer(files...)
}

// text repeats random words, so that it compresses.
func text(random *rand.Rand, length int) []byte {
	var b bytes.Buffer
	word := make([]byte, 24)
	for b.Len() < length {
		for i := range word {
			word[i] = byte(random.UintN(256))
		}
		for range 1 + random.IntN(5) {
			b.Write(word)
		}
	}
	return b.Bytes()[:length]
}
