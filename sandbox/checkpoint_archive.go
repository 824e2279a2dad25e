package sandbox

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/evenkeel/evenkeel/oci/runc"
)

// A checkpoint's archive is a tar of what podman, CRI-O and containerd write, and checkpointctl reads
// (github.com/checkpoint-restore/checkpointctl, lib/metadata.go): CRIU's images in checkpoint/, its log and statistics, the
// container's root file system as a difference to its image, and three documents that say what all this was.
const (
	checkpointImages = "checkpoint"
	checkpointLog    = "dump.log"
	layerArchive     = "rootfs-diff.tar"
	layerDeletions   = "deleted.files"
)

// dump has CRIU write the memory of all processes. It does not end with ctx.
func (c checkpoint) dump(ctx context.Context) error {
	ctx, stop := context.WithTimeoutCause(context.WithoutCancel(ctx), dumpLimit, fmt.Errorf("CRIU is not done after %s: %w", dumpLimit, ErrTimeout))
	defer stop()
	ctx, end := c.whileWanted(ctx, dumpPatience)
	defer end()
	err := c.runtime().Checkpoint(ctx, c.id, runc.CheckpointOptions{Images: filepath.Join(c.dir, checkpointImages), Work: c.dir})
	if err == nil {
		return nil
	}
	if c.wanted.Err() != nil {
		return context.Cause(c.wanted)
	}
	if reasons := criuErrors(filepath.Join(c.dir, checkpointLog)); reasons != "" {
		return fmt.Errorf("CRIU failed: %s%s: %w", reasons, criuHint(reasons), err)
	}
	return err
}

// criuErrors returns what CRIU's log calls errors, the first of them, since the others follow from it:
// "(00.085092) Error (criu/cr-dump.c:389): Can't get rlimit 0: Operation not permitted".
func criuErrors(log string) string {
	f, err := os.Open(log)
	if err != nil {
		return ""
	}
	defer f.Close()
	var found []string
	for lines := bufio.NewScanner(f); lines.Scan() && len(found) < criuReasons; {
		_, text, ok := strings.Cut(lines.Text(), ") Error (")
		if _, message, has := strings.Cut(text, "): "); ok && has && !strings.Contains(message, "RLIMIT_NOFILE for self") {
			found = append(found, strings.TrimSpace(message))
		}
	}
	return strings.Join(found, "; ")
}

const criuReasons = 3

// criuHint says what can be done about failures whose words do not.
func criuHint(reasons string) string {
	switch {
	case strings.Contains(reasons, "vdso: Unexpected rt vDSO"), strings.Contains(reasons, "initializing kerndat"):
		return " (this release of CRIU does not know this kernel; install a newer one)"
	case strings.Contains(reasons, "get rlimit") && strings.Contains(reasons, "not permitted"):
		return " (without CAP_SYS_RESOURCE the engine can only checkpoint processes of its own user)"
	}
	return ""
}

// describe writes the three documents.
func (c checkpoint) describe() error {
	spec, err := os.ReadFile(filepath.Join(c.stateDir(), "config.json"))
	if err != nil {
		return err
	}
	config, err := json.Marshal(c.config())
	if err != nil {
		return err
	}
	status, err := json.Marshal(c.status())
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{"spec.dump": spec, "config.dump": config, "status.dump": status} {
		if err := os.WriteFile(filepath.Join(c.dir, name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// checkpointConfig is config.dump.
type checkpointConfig struct {
	ID              string    `json:"id"`
	Name            string    `json:"name"`
	RootfsImage     string    `json:"rootfsImage,omitempty"`     // as the user named it
	RootfsImageRef  string    `json:"rootfsImageRef,omitempty"`  // by digest
	RootfsImageName string    `json:"rootfsImageName,omitempty"` // by tag
	OCIRuntime      string    `json:"runtime,omitempty"`
	CreatedTime     time.Time `json:"createdTime"`
	CheckpointedAt  time.Time `json:"checkpointedTime"`
	Restored        bool      `json:"restored"`
}

func (c checkpoint) config() checkpointConfig {
	r := c.facts()
	image := r.Config.Message.GetImage()
	return checkpointConfig{
		ID: c.id, Name: r.Config.Message.GetMetadata().GetName(), OCIRuntime: filepath.Base(c.runtime().Path),
		RootfsImage: image.GetUserSpecifiedImage(), RootfsImageRef: r.ImageRef, RootfsImageName: image.GetImage(),
		CreatedTime: r.CreatedAt, CheckpointedAt: time.Now(),
	}
}

// archiveOf writes what there is in dir, and in the directory of CRIU's images below it, as one archive.
func archiveOf(dir string, w io.Writer) error {
	out := tar.NewWriter(w)
	if err := addDirectory(out, dir, ""); err != nil {
		return err
	}
	// CRIU makes its directory without the bit that lets one enter it.
	if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: checkpointImages + "/", Mode: 0o700}); err != nil {
		return err
	}
	return errors.Join(addDirectory(out, dir, checkpointImages), out.Close())
}

func addDirectory(out *tar.Writer, dir, below string) error {
	entries, err := os.ReadDir(filepath.Join(dir, below))
	for _, entry := range entries {
		if err == nil && entry.Type().IsRegular() {
			err = addFile(out, dir, filepath.Join(below, entry.Name()))
		}
	}
	return err
}

func addFile(out *tar.Writer, dir, name string) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return addContent(out, &tar.Header{Name: name, Mode: 0o600, Size: info.Size(), ModTime: info.ModTime()}, f)
}

func addContent(out *tar.Writer, h *tar.Header, content io.Reader) error {
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.CopyN(out, content, h.Size); err != nil {
		return fmt.Errorf("%s changed while it was read: %w", h.Name, err)
	}
	return nil
}

// anonymous keeps the names of the node's users, which mean nothing in the container, out of an archive.
type anonymous struct{ fs.FileInfo }

func (anonymous) Uname() (string, error) { return "", nil }
func (anonymous) Gname() (string, error) { return "", nil }
