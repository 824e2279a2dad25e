package main

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/evenkeel/evenkeel/nri"
	"github.com/evenkeel/evenkeel/sandbox"
)

func (n nriConfig) check() error {
	switch {
	case n.Socket != "" && !filepath.IsAbs(n.Socket):
		return fmt.Errorf("nri.socket = %q: it must be an absolute path", n.Socket)
	case n.Socket == "" && n.PluginDir != "":
		return fmt.Errorf("nri.plugin_dir = %q needs nri.socket as well", n.PluginDir)
	case n.RegisterTimeout <= 0 || n.RequestTimeout <= 0:
		return fmt.Errorf("nri.registration_timeout = %s and nri.request_timeout = %s must be above 0",
			time.Duration(n.RegisterTimeout), time.Duration(n.RequestTimeout))
	}
	return nil
}

// pluginsOf gives pods the plugins of the Node Resource Interface, if the node wants any: nil if not.
func pluginsOf(c nriConfig, pods *sandbox.Pods, log *slog.Logger) (*nri.Plugins, error) {
	if c.Socket == "" {
		return nil, nil
	}
	p := &nri.Plugins{
		Socket: c.Socket, PluginDir: c.PluginDir, ConfigDir: c.ConfigDir, Release: version,
		RegisterTimeout: time.Duration(c.RegisterTimeout), RequestTimeout: time.Duration(c.RequestTimeout), Pods: pods, Log: log,
	}
	if err := p.Open(); err != nil {
		return nil, err
	}
	pods.Plugins = p
	return p, nil
}
