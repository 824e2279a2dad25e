// Package debian fetches Debian packages of any architecture with apt, in directories of its own: neither the package
// lists nor the installed packages of the machine are read or changed. apt checks the signatures.
package debian

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Sources are where packages come from: the stable release that the rest of the project is built on, and its
// backports for the kernel.
const Sources = `deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm-backports main
`

// An Archive is the Debian archive as seen by one architecture. Dir is filled with apt's own files.
type Archive struct {
	Dir  string
	Arch string // Debian's name: amd64, arm64
}

// Open fetches the lists of packages.
func Open(ctx context.Context, dir, arch string) (*Archive, error) {
	a := &Archive{Dir: dir, Arch: arch}
	for _, d := range []string{"lists/partial", "cache/archives/partial", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/sources.list"), []byte(Sources), 0o644); err != nil {
		return nil, err
	}
	_, err := a.apt(ctx, "apt-get", "update", "-qq")
	return a, err
}

// apt runs one of apt's programs inside Dir. An empty dpkg status makes apt think that nothing is installed.
func (a *Archive) apt(ctx context.Context, program string, args ...string) (string, error) {
	for _, option := range []string{
		"Dir::Etc::sourcelist=" + filepath.Join(a.Dir, "etc/sources.list"), "Dir::Etc::sourceparts=/dev/null",
		"Dir::State=" + a.Dir, "Dir::State::lists=" + filepath.Join(a.Dir, "lists"), "Dir::State::status=/dev/null",
		"Dir::Cache=" + filepath.Join(a.Dir, "cache"), "APT::Architecture=" + a.Arch, "APT::Architectures=" + a.Arch,
		"APT::Sandbox::User=root", "Debug::NoLocking=1",
	} {
		args = append(args, "-o", option)
	}
	c := exec.CommandContext(ctx, program, args...)
	c.Dir = filepath.Join(a.Dir, "cache/archives")
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s%s", program, args[0], err, stderr.String(), stdout.String())
	}
	return stdout.String(), nil
}

// Newest is the package of the highest version among those whose whole name matches.
func (a *Archive) Newest(ctx context.Context, prefix string, name *regexp.Regexp) (string, error) {
	out, err := a.apt(ctx, "apt-cache", "pkgnames", prefix)
	if err != nil {
		return "", err
	}
	names := slices.DeleteFunc(strings.Fields(out), func(n string) bool { return !name.MatchString(n) })
	if len(names) == 0 {
		return "", fmt.Errorf("the archive has no package %s for %s", name, a.Arch)
	}
	return slices.MaxFunc(names, byNumbers), nil
}

var number = regexp.MustCompile(`\d+`)

// byNumbers compares names by the numbers in them.
func byNumbers(a, b string) int {
	pad := func(s string) string {
		return number.ReplaceAllStringFunc(s, func(d string) string { return fmt.Sprintf("%09s", d) })
	}
	return cmp.Compare(pad(a), pad(b))
}

// Fetch downloads a package without what it depends on and returns its file.
func (a *Archive) Fetch(ctx context.Context, name string) (string, error) {
	before, err := a.files()
	if err != nil {
		return "", err
	}
	if _, err := a.apt(ctx, "apt-get", "download", "-qq", name); err != nil {
		return "", err
	}
	after, err := a.files()
	after = slices.DeleteFunc(after, func(f string) bool { return slices.Contains(before, f) })
	if err != nil || len(after) != 1 {
		return "", fmt.Errorf("downloading %s brought %d files: %w", name, len(after), err)
	}
	return after[0], nil
}

// FetchAll downloads packages and all that they depend on, and returns their files.
func (a *Archive) FetchAll(ctx context.Context, names ...string) ([]string, error) {
	before, err := a.files()
	if err != nil {
		return nil, err
	}
	args := append([]string{"install", "-qq", "-y", "--no-install-recommends", "--download-only"}, names...)
	if _, err := a.apt(ctx, "apt-get", args...); err != nil {
		return nil, err
	}
	after, err := a.files()
	return slices.DeleteFunc(after, func(f string) bool { return slices.Contains(before, f) }), err
}

func (a *Archive) files() ([]string, error) {
	return filepath.Glob(filepath.Join(a.Dir, "cache/archives/*.deb"))
}

// Each calls f for every file of a package.
func Each(ctx context.Context, deb string, f func(name string, h *tar.Header, r io.Reader) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	if err := each(tar.NewReader(out), f); err != nil {
		cancel()
		c.Wait()
		return fmt.Errorf("cannot read %s: %w", deb, err)
	}
	io.Copy(io.Discard, out) // the padding after the end of the archive
	if err := c.Wait(); err != nil {
		return fmt.Errorf("cannot read %s: %w: %s", deb, err, stderr.String())
	}
	return nil
}

func each(t *tar.Reader, f func(string, *tar.Header, io.Reader) error) error {
	for {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(strings.TrimPrefix(h.Name, "./"), h, t); err != nil {
			return err
		}
	}
}
