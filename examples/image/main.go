// Command image packs one static program into a container image, without a registry and without a builder: the same
// program gives the same archive, byte for byte.
//
//	image -arch arm64 -tag evenkeel.test/web:demo -o web.tar path/to/web
package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func main() {
	arch := flag.String("arch", runtime.GOARCH, "architecture of the program")
	tag := flag.String("tag", "evenkeel.test/web:demo", "name of the image")
	out := flag.String("o", "", "docker-save archive to write")
	flag.Parse()
	if flag.NArg() != 1 || *out == "" {
		fmt.Fprintln(os.Stderr, "usage: image [-arch ARCH] [-tag NAME] -o ARCHIVE PROGRAM")
		os.Exit(2)
	}
	if err := pack(flag.Arg(0), *arch, *tag, *out); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func pack(program, arch, tag, out string) error {
	reference, err := name.NewTag(tag)
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	if err := checkMachine(raw, program, arch); err != nil {
		return err
	}
	image, err := build(raw, filepath.Base(program), arch)
	if err != nil {
		return fmt.Errorf("cannot build an image of %s: %w", program, err)
	}
	return tarball.WriteToFile(out, reference, image)
}

// checkMachine finds a program of the wrong architecture here, where it was built, and not in a container later.
func checkMachine(raw []byte, program, arch string) error {
	file, err := elf.NewFile(bytes.NewReader(raw))
	if err != nil {
		return fmt.Errorf("%s is no program: %w", program, err)
	}
	want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "arm": elf.EM_ARM, "riscv64": elf.EM_RISCV}[arch]
	if file.Machine != want {
		return fmt.Errorf("%s is for %s, not for %s", program, file.Machine, arch)
	}
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is not static: build it with CGO_ENABLED=0", program)
		}
	}
	return nil
}

// build is the image: one layer with the program, /tmp and a user's entry, run as that user.
func build(program []byte, base, arch string) (v1.Image, error) {
	files, err := layer(program, base)
	if err != nil {
		return nil, err
	}
	content, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files)), nil })
	if err != nil {
		return nil, err
	}
	image, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS: "linux", Architecture: arch,
		Config: v1.Config{
			Entrypoint: []string{"/" + base},
			Env:        []string{"PATH=/"},
			User:       "65532:65532",
			WorkingDir: "/",
		},
	})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(image, content)
}

func layer(program []byte, base string) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		header  tar.Header
		content []byte
	}{
		{tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755}, nil},
		{tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/:/sbin/nologin\nweb:x:65532:65532:web:/:/sbin/nologin\n")},
		{tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nweb:x:65532:\n")},
		{tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil},
		{tar.Header{Typeflag: tar.TypeReg, Name: base, Mode: 0o755}, program},
	} {
		// The same time in every image, so that the same program gives the same digest.
		f.header.ModTime = time.Unix(0, 0)
		f.header.Size = int64(len(f.content))
		if err := w.WriteHeader(&f.header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}
