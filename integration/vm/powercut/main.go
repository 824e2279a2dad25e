// Command powercut runs inside a test machine whose power will be cut. After each boot it starts the engine on what
// the disk kept, reads every file of every image that the engine lists and compares it with what the image was made
// of, pulls an image, and then pulls and removes images until the power goes. With -mode pods it makes, execs into and
// removes pods meanwhile, and after each boot looks for what is left of them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/integration/engine"
	"github.com/evenkeel/evenkeel/integration/registry"
)

func main() {
	bin := flag.String("bin", "", "`directory` of the engine's binaries")
	mode := flag.String("mode", "images", "what is going on when the power goes: `images` or pods")
	flag.Parse()
	if err := run(context.Background(), *bin, *mode == "pods"); err != nil {
		fmt.Println("DAMAGE:", err) // the words that the host waits for; see ../cut.go
		os.Exit(1)
	}
}

// A bed is the engine, a registry, and the images that both know.
type bed struct {
	*engine.Engine
	images  []*made
	program string // id of the image that pods run
}

func run(ctx context.Context, bin string, pods bool) error {
	b := &bed{Engine: &engine.Engine{Bin: bin, Base: "/var/lib/powercut", State: "/run/powercut", Network: "builtin", Bridge: "cut0", Subnet: "10.199.0.0/24"}}
	if err := b.prepare(); err != nil {
		return err
	}
	if err := b.Start(); err != nil {
		return fmt.Errorf("the engine does not start after the power cut: %w", err)
	}
	verified, err := b.check(ctx, pods)
	if err == nil {
		fmt.Println("VERIFIED:", verified)
		fmt.Println("PULLING")
		if pods {
			err = b.churnPods(ctx)
		} else {
			err = b.churn(ctx)
		}
	}
	return errors.Join(err, errors.New(b.LastWords(30)))
}

// check says what it found good.
func (b *bed) check(ctx context.Context, pods bool) (string, error) {
	found := ""
	if pods {
		p, c, err := b.recovered(ctx)
		if err != nil {
			return "", err
		}
		found = fmt.Sprintf("%d pods with %d containers left without a trace, ", p, c)
	}
	images, files, err := b.verifyAll(ctx)
	if err != nil {
		return "", err
	}
	if err := b.nextPull(ctx); err != nil {
		return "", fmt.Errorf("the next pull: %w", err)
	}
	found += fmt.Sprintf("%d images, %d files; the next pull is good", images, files)
	if !pods {
		return found, nil
	}
	if err := b.serves(ctx); err != nil {
		return "", fmt.Errorf("the next pod: %w", err)
	}
	return found + ", and so is the next pod", nil
}

func (b *bed) prepare() (err error) {
	for _, dir := range []string{b.Root(), b.HostsDir(), b.ConfDir(), b.LogDir(), b.State} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	r := registry.Serve()
	if err := r.Mirror(b.HostsDir(), host); err != nil {
		return err
	}
	if b.images, err = publish(r); err != nil {
		return err
	}
	return b.publishProgram(r)
}

// verifyAll reads what the engine lists.
func (b *bed) verifyAll(ctx context.Context) (images, files int, err error) {
	list, err := b.Images.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		return 0, 0, err
	}
	var refs []string
	for _, listed := range list.Images {
		refs = append(refs, listed.RepoTags...)
	}
	fmt.Println("LISTED:", strings.Join(refs, " "))
	for _, listed := range list.Images {
		n, err := b.verify(listed)
		if err != nil {
			return images, files, fmt.Errorf("image %v (%s): %w", listed.RepoTags, listed.Id, err)
		}
		images, files = images+1, files+n
	}
	return images, files, nil
}

func (b *bed) verify(listed *cri.Image) (files int, err error) {
	if isProgram(listed) && listed.Id == b.program { // a container that runs it compares it
		return 0, nil
	}
	at := slices.IndexFunc(b.images, func(m *made) bool { return slices.Contains(listed.RepoTags, m.ref) })
	if at < 0 {
		return 0, errors.New("nobody made such an image")
	}
	m := b.images[at]
	if listed.Id != m.id {
		return 0, fmt.Errorf("its id should be %s", m.id)
	}
	for _, l := range m.layers {
		n, err := l.verify(filepath.Join(b.Root(), "images", "layers", l.directory(), "fs"))
		if err != nil {
			return files, fmt.Errorf("layer %s: %w", l.diffID, err)
		}
		files += n
	}
	return files, nil
}

// nextPull pulls an image that is not there and reads it.
func (b *bed) nextPull(ctx context.Context) error {
	m := b.images[rand.IntN(len(b.images))]
	spec := &cri.ImageSpec{Image: m.ref}
	loses(m.ref)
	if _, err := b.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec}); err != nil {
		return err
	}
	if _, err := b.Images.PullImage(ctx, &cri.PullImageRequest{Image: spec}); err != nil {
		return err
	}
	status, err := b.Images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec})
	if err != nil {
		return err
	}
	fmt.Println("HAS:", m.ref)
	if status.Image == nil {
		return fmt.Errorf("%s was pulled and is not there", m.ref)
	}
	_, err = b.verify(status.Image)
	return err
}

// kept is how many images stay. Beyond that they go, so that there is always something to pull.
const kept = 3

// churn never ends by itself.
func (b *bed) churn(ctx context.Context) error {
	for {
		if err := b.makeRoom(ctx); err != nil {
			return fmt.Errorf("cannot remove: %w", err)
		}
		begin := time.Now()
		m := b.images[rand.IntN(len(b.images))]
		if _, err := b.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: m.ref}}); err != nil {
			return fmt.Errorf("cannot pull: %w", err)
		}
		fmt.Println("HAS:", m.ref)
		fmt.Printf("did pull %s in %s\n", m.ref, time.Since(begin).Round(time.Millisecond))
	}
}

func (b *bed) makeRoom(ctx context.Context) error {
	list, err := b.Images.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil || len(list.Images) <= kept {
		return err
	}
	for _, at := range rand.Perm(len(list.Images))[kept:] {
		if isProgram(list.Images[at]) {
			continue
		}
		loses(list.Images[at].RepoTags...)
		if _, err := b.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: list.Images[at].Id}}); err != nil {
			return err
		}
	}
	return nil
}

// loses tells the host, before they go, which images it must not look for after a cut. The word has a second to get there:
// nothing comes back through the port that it leaves by.
func loses(refs ...string) {
	for _, ref := range refs {
		fmt.Println("LOSES:", ref)
	}
	time.Sleep(time.Second)
}
