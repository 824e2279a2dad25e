package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/image"
	"github.com/evenkeel/evenkeel/internal/effect"
	"github.com/evenkeel/evenkeel/network"
	"github.com/evenkeel/evenkeel/shim"
)

// podShm is apart from podFiles because it is a mount and has an undo of its own.
var podShm = effect.New("pod.shm")

// shmSize is /dev/shm's size in bytes, as the peers have it.
const shmSize = 64 << 20

// makeFiles writes what containers find as /etc/hosts, /etc/hostname, /etc/resolv.conf and /dev/shm.
func (p *pod) makeFiles(ctx context.Context, dns network.DNS) error {
	err := podFiles.Do(ctx, func() error { return p.writeFiles(dns) })
	if err != nil {
		return fmt.Errorf("cannot write the files of pod %s: %w", p.id, err)
	}
	if p.namespaceOptions().GetIpc() != cri.NamespaceMode_POD {
		return nil
	}
	return podShm.Do(ctx, func() error {
		if err := mountShm(p.file("shm"), shmOptions(p.owner(), p.mountLabel())); err != nil {
			return fmt.Errorf("cannot mount /dev/shm of pod %s: %w", p.id, err)
		}
		return nil
	})
}

func (p *pod) writeFiles(dns network.DNS) error {
	cfg := p.facts().Config.Message
	resolv, err := resolvConf(cfg.GetDnsConfig(), dns)
	if err != nil {
		return err
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	name := hostname(cfg)
	if p.onHostNetwork() {
		name, _ = os.Hostname()
	}
	return errors.Join(
		os.WriteFile(p.file("resolv.conf"), resolv, 0o644),
		os.WriteFile(p.file("hosts"), hosts, 0o644),
		os.WriteFile(p.file("hostname"), []byte(name+"\n"), 0o644),
		p.giveFiles("resolv.conf", "hosts", "hostname"),
		p.labelFiles("resolv.conf", "hosts", "hostname"),
	)
}

// resolvConf renders resolv.conf(5) from the request, else from the network's own answer, else copies the node's.
func resolvConf(want *cri.DNSConfig, dns network.DNS) ([]byte, error) {
	if len(want.GetServers())+len(want.GetSearches())+len(want.GetOptions()) > 0 {
		dns = network.DNS{Servers: want.GetServers(), Searches: want.GetSearches(), Options: want.GetOptions()}
	}
	if len(dns.Servers)+len(dns.Searches)+len(dns.Options) == 0 {
		node, err := os.ReadFile("/etc/resolv.conf")
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return node, err
	}
	var b bytes.Buffer
	if len(dns.Searches) > 0 {
		fmt.Fprintln(&b, "search", strings.Join(dns.Searches, " "))
	}
	for _, server := range dns.Servers {
		fmt.Fprintln(&b, "nameserver", server)
	}
	if len(dns.Options) > 0 {
		fmt.Fprintln(&b, "options", strings.Join(dns.Options, " "))
	}
	return b.Bytes(), nil
}

func shmOptions(owner shim.Owner, label string) string {
	options := fmt.Sprintf("mode=1777,size=%d,uid=%d,gid=%d", shmSize, owner.UID, owner.GID)
	if label != "" {
		options += "," + image.ContextOption(label)
	}
	return options
}

func mountShm(dir, options string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	return nil
}

// unmountShm leaves nothing mounted at dir and no dir.
func unmountShm(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cannot unmount %s: %w", dir, err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// engineMounts are the files and /dev/shm that every container of the pod gets.
func (p *pod) engineMounts(readOnly bool) []specs.Mount {
	options := []string{"rbind", "rprivate", "rw"}
	if readOnly {
		options = []string{"rbind", "rprivate", "ro"}
	}
	var mounts []specs.Mount
	for target, name := range map[string]string{"/etc/hosts": "hosts", "/etc/hostname": "hostname", "/etc/resolv.conf": "resolv.conf"} {
		mounts = append(mounts, specs.Mount{Destination: target, Type: "bind", Source: p.file(name), Options: options})
	}
	shm := p.file("shm")
	if p.namespaceOptions().GetIpc() == cri.NamespaceMode_NODE {
		shm = "/dev/shm"
	}
	return append(mounts, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: shm, Options: []string{"rbind", "rprivate", "rw"}})
}
