package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/shim"
)

// checkPrograms finds the shim and the OCI runtimes as serve will.
func checkPrograms(ctx context.Context, c config) []checked {
	list := []checked{checkProgram(ctx, "evenkeel-shim", c.Shim, "evenkeel-shim", true)}
	for _, name := range slices.Sorted(maps.Keys(c.Handler)) {
		list = append(list, checkProgram(ctx, "runtime "+name, c.Handler[name].Path, name, name == c.Runtime))
	}
	return list
}

func checkProgram(ctx context.Context, title, configured, name string, essential bool) checked {
	c := checked{Name: title, Status: isOK}
	worst := isWarning
	if essential {
		worst = isMissing
	}
	path, err := program(configured, name)
	if err != nil {
		c.Status, c.Detail = worst, plain(err)
		c.Cure = "`make build` makes it, `make install` puts it where the engine looks"
		return c
	}
	flag := "--version"
	if name == "evenkeel-shim" {
		flag = "version"
	}
	said, err := programVersion(ctx, path, flag)
	if err != nil {
		c.Status, c.Detail, c.Cure = worst, fmt.Sprintf("%s %s: %v", path, flag, err), "the program cannot be run: is it for this architecture?"
		return c
	}
	c.Detail = path + ", " + said
	if protocol := fmt.Sprintf("protocol %d", shim.Version); name == "evenkeel-shim" && !strings.HasSuffix(said, protocol) {
		c.Status, c.Cure = isMissing, "this program speaks "+protocol+": install both from one build"
	}
	return c
}

// programVersion is the first line of what the program says of itself.
func programVersion(ctx context.Context, path, flag string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	said, err := exec.CommandContext(ctx, path, flag).CombinedOutput()
	line, _, _ := strings.Cut(strings.TrimSpace(string(said)), "\n")
	if err != nil && line != "" {
		err = fmt.Errorf("%w: %s", err, line)
	}
	return line, err
}

// checkDirectory tells whether a directory can be written to, or be made, without making it.
func checkDirectory(title, path string) checked {
	c := checked{Name: title, Status: isOK, Detail: path}
	existing := path
	for {
		_, err := os.Stat(existing)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || existing == "/" {
			c.Status, c.Detail, c.Cure = isMissing, err.Error(), "choose another directory"
			return c
		}
		existing = filepath.Dir(existing)
	}
	if existing != path {
		c.Detail += ", not made yet"
	}
	if err := unix.Access(existing, unix.W_OK); err != nil {
		c.Status, c.Detail, c.Cure = isMissing, fmt.Sprintf("%s cannot be written to: %v", existing, err), "make it writable, or choose another directory"
		return c
	}
	var fs unix.Statfs_t
	if unix.Statfs(existing, &fs) == nil {
		free := fs.Bavail * uint64(fs.Bsize)
		c.Detail += ", " + byteCount(free) + " free"
		if free < 1<<30 && title == "root directory" {
			c.Status, c.Cure = isWarning, "images need room: this may not do"
		}
	}
	return c
}

func checkNetwork(c config) []checked {
	list := []checked{checkForwarding()}
	if c.Network.Mode == "builtin" {
		return append(list, checkNFTables(), checkModule("bridge", "br_dev_setup"), checkModule("veth", "veth_setup"))
	}
	return append(list, checkCNI(c)...)
}

func checkForwarding() checked {
	raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	switch {
	case err != nil:
		return checked{"ip_forward", isWarning, err.Error(), "pods may not reach beyond this machine"}
	case strings.TrimSpace(string(raw)) != "1":
		return checked{"ip_forward", isWarning, "off", "pods do not reach beyond this machine until `sysctl -w net.ipv4.ip_forward=1` (the built-in network turns it on itself)"}
	}
	return checked{Name: "ip_forward", Status: isOK, Detail: "on"}
}

// checkNFTables asks the kernel itself for the generation of its ruleset: there is no program between it and the built-in
// network.
func checkNFTables() checked {
	if err := askNFTables(); err != nil {
		return checked{"nftables", isMissing, err.Error(), "as root, load it with `modprobe nf_tables`, or build the kernel with CONFIG_NF_TABLES"}
	}
	return checked{Name: "nftables", Status: isOK, Detail: "the kernel answers"}
}

// askNFTables sends NFT_MSG_GETGEN (linux/netfilter/nf_tables.h). The answer is a message of type NEWGEN, or an error.
func askNFTables() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// nlmsghdr, then nfgenmsg: family, version, resource id.
	message := make([]byte, unix.NLMSG_HDRLEN+4)
	binary.NativeEndian.PutUint32(message[0:], uint32(len(message)))
	binary.NativeEndian.PutUint16(message[4:], unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN)
	binary.NativeEndian.PutUint16(message[6:], unix.NLM_F_REQUEST)
	if err := unix.Sendto(fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil || n < unix.NLMSG_HDRLEN+4 {
		return cmp.Or(err, errors.New("short answer"))
	}
	if binary.NativeEndian.Uint16(answer[4:]) == unix.NLMSG_ERROR {
		return unix.Errno(-int32(binary.NativeEndian.Uint32(answer[unix.NLMSG_HDRLEN:])))
	}
	return nil
}

// checkModule looks for a driver among the loaded modules, in the kernel's own symbols (one that is built in shows nowhere
// else for sure), and among the modules on disk.
func checkModule(name, symbol string) checked {
	if _, err := os.Stat("/sys/module/" + name); err == nil || hasSymbol(symbol) {
		return checked{Name: name, Status: isOK, Detail: "the kernel has it"}
	}
	if moduleExists(name) {
		return checked{Name: name, Status: isOK, Detail: "a module that is loaded at need"}
	}
	return checked{name, isWarning, "not seen", "if the built-in network fails: `modprobe " + name + "`"}
}

func hasSymbol(name string) bool {
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && fields[2] == name {
			return true
		}
	}
	return false
}

// conflist is what matters of a CNI network definition; a definition of one plugin is itself the plugin.
type conflist struct {
	Name    string
	Type    string
	Plugins []struct{ Type string }
}

// checkCNI looks for a network definition, the first by name, and for each program that it names.
func checkCNI(c config) []checked {
	entries, err := os.ReadDir(c.Network.ConfDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return []checked{{"CNI network", isMissing, err.Error(), "make it readable, or name another directory in the configuration"}}
	}
	for _, e := range entries {
		if slices.Contains([]string{".conflist", ".conf", ".json"}, filepath.Ext(e.Name())) {
			return checkConflist(filepath.Join(c.Network.ConfDir, e.Name()), c.Network.BinDirs)
		}
	}
	return []checked{{"CNI network", isWarning, "no definition in " + c.Network.ConfDir, "install a network plugin (flannel, Cilium, Calico, ...), or serve with --network=builtin; until then only pods on the host's network run"}}
}

func checkConflist(file string, dirs []string) []checked {
	var network conflist
	raw, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(raw, &network)
	}
	if err != nil {
		return []checked{{"CNI network", isMissing, fmt.Sprintf("%s: %v", file, err), "mend or remove it"}}
	}
	list := []checked{{Name: "CNI network", Status: isOK, Detail: network.Name + " from " + file}}
	if len(network.Plugins) == 0 {
		return append(list, checkPlugin(network.Type, dirs))
	}
	for _, p := range network.Plugins {
		list = append(list, checkPlugin(p.Type, dirs))
	}
	return list
}

func checkPlugin(name string, dirs []string) checked {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if unix.Access(path, unix.X_OK) == nil {
			return checked{Name: "CNI plugin " + name, Status: isOK, Detail: path}
		}
	}
	return checked{"CNI plugin " + name, isMissing, "not in " + strings.Join(dirs, " or "), "`make install` puts the standard plugins there; others come with the network's own installer"}
}
