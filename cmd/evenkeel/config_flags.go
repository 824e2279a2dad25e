package main

import "github.com/spf13/cobra"

// configFlags are those of a command that works with the engine's configuration: where its file is, and what the
// command line says instead.
type configFlags struct {
	file    string
	command *cobra.Command
	values  config
}

// flagKeys are the keys that have a flag.
var flagKeys = map[string]string{
	"root": "root", "state": "state", "listen": "listen", "log-level": "log_level", "network": "network.mode",
	"cni-conf-dir": "network.cni_conf_dir", "cni-bin-dir": "network.cni_bin_dirs", "registry-hosts-dir": "images.hosts_dir",
}

func (o *configFlags) register(c *cobra.Command) {
	o.command, o.values = c, defaultConfig()
	f, v := c.Flags(), &o.values
	f.StringVar(&o.file, "config", "", "configuration file (default "+configFile+", which need not exist)")
	f.StringVar(&v.Root, "root", v.Root, "directory for what survives a reboot")
	f.StringVar(&v.State, "state", v.State, "directory for what does not, best on tmpfs")
	f.StringVar(&v.Listen, "listen", v.Listen, "socket of the CRI")
	f.StringVar(&v.Network.Mode, "network", v.Network.Mode, "auto, cni or builtin")
	f.StringVar(&v.Network.ConfDir, "cni-conf-dir", v.Network.ConfDir, "directory of CNI conflists")
	f.StringSliceVar(&v.Network.BinDirs, "cni-bin-dir", v.Network.BinDirs, "directories of CNI plugins")
	f.StringVar(&v.Images.HostsDir, "registry-hosts-dir", v.Images.HostsDir, "directory of <registry>/hosts.toml files")
	f.StringVar(&v.LogLevel, "log-level", v.LogLevel, "debug, info, warn or error")
}

// load reads the files and puts the flags over them. It also tells where each value comes from.
func (o *configFlags) load() (config, origins, error) {
	loaded, from, err := loadConfig(o.file)
	if err != nil {
		return loaded, from, err
	}
	for name, override := range map[string]func(){
		"root": func() { loaded.Root = o.values.Root }, "state": func() { loaded.State = o.values.State },
		"listen": func() { loaded.Listen = o.values.Listen }, "log-level": func() { loaded.LogLevel = o.values.LogLevel },
		"network": func() { loaded.Network.Mode = o.values.Network.Mode }, "cni-conf-dir": func() { loaded.Network.ConfDir = o.values.Network.ConfDir },
		"cni-bin-dir":        func() { loaded.Network.BinDirs = o.values.Network.BinDirs },
		"registry-hosts-dir": func() { loaded.Images.HostsDir = o.values.Images.HostsDir },
	} {
		if o.command.Flags().Changed(name) {
			override()
			from[flagKeys[name]] = "--" + name
		}
	}
	return loaded, from, loaded.check()
}
