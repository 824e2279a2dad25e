package main

import (
	"cmp"
	"log/slog"
	"path/filepath"

	"github.com/evenkeel/evenkeel/image"
)

// imageStore is the store as it is configured.
func imageStore(c config, log *slog.Logger) *image.Store {
	return &image.Store{
		Root: filepath.Join(c.Root, "images"), HostsDir: c.Images.HostsDir, AuthFiles: c.Images.AuthFiles, Pinned: c.Images.Pinned,
		Preload: cmp.Or(c.Images.Preload, filepath.Join(c.Root, "preload")), Share: c.Images.Share, Parallel: c.Images.Parallel, Log: log,
		Limits: image.Limits{Bytes: c.Images.MaxBytes, Entries: c.Images.MaxFiles}, ArchiveBytes: c.Images.MaxWhole,
	}
}
