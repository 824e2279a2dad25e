// Package kernel takes a kernel and the modules that a node needs out of Debian's kernel package.
package kernel

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"

	"github.com/evenkeel/evenkeel/integration/vm/debian"
)

// A Kernel is what a machine boots with.
type Kernel struct {
	Image   []byte
	Release string
	Modules []Module // in the order in which they can be loaded
}

// A Module is one loadable part of the kernel, not compressed.
type Module struct {
	Name string
	Data []byte
}

// Wanted are the modules of a node: disks and file systems, the network of pods, and what nft and iptables ask for. A
// machine with udev and modprobe would load them on demand. A name that the kernel has built in, or lacks, is skipped.
var Wanted = strings.Fields(`
	virtio_mmio virtio_blk virtio_net virtio_rng crc32c_generic crc32c quota_v2 ext4 overlay erofs loop fuse binfmt_misc
	veth bridge br_netfilter dummy tun ifb sch_tbf sch_ingress sch_fq_codel cls_u32 cls_matchall act_mirred
	nf_tables nft_chain_nat nft_nat nft_masq nft_redir nft_ct nft_fib nft_fib_inet nft_fib_ipv4 nft_fib_ipv6
	nft_reject nft_reject_inet nft_limit nft_log nft_hash nft_numgen nft_compat nf_conntrack_netlink
	nf_reject_ipv4 nf_reject_ipv6 nf_log_syslog x_tables
	xt_comment xt_conntrack xt_MASQUERADE xt_nat xt_addrtype xt_mark xt_multiport xt_tcpudp xt_statistic xt_limit xt_REDIRECT xt_sctp
`)

// Read finds the kernel in a package.
func Read(ctx context.Context, deb string) (*Kernel, error) {
	k := &Kernel{}
	packed := map[string][]byte{}
	err := debian.Each(ctx, deb, func(name string, h *tar.Header, r io.Reader) (err error) {
		if h.Typeflag != tar.TypeReg {
			return nil
		}
		if release, ok := strings.CutPrefix(name, "boot/vmlinuz-"); ok {
			k.Release = release
			k.Image, err = io.ReadAll(r)
		} else if base, ok := strings.CutSuffix(path.Base(name), ".ko.xz"); ok {
			packed[spelled(base)], err = io.ReadAll(r)
		}
		return err
	})
	if err == nil && k.Image == nil {
		err = fmt.Errorf("%s holds no kernel", deb)
	}
	if err != nil {
		return nil, err
	}
	o := order{ctx: ctx, packed: packed, seen: map[string]bool{}}
	for _, name := range Wanted {
		if err := o.add(name); err != nil {
			return nil, err
		}
	}
	k.Modules = o.list
	return k, nil
}

// spelled makes one of the two ways in which module names are written.
func spelled(name string) string { return strings.ReplaceAll(name, "-", "_") }

// order lists modules so that each comes after those it needs.
type order struct {
	ctx    context.Context
	packed map[string][]byte
	seen   map[string]bool
	list   []Module
}

func (o *order) add(name string) error {
	name = spelled(name)
	data, here := o.packed[name]
	if !here || o.seen[name] {
		return nil
	}
	o.seen[name] = true
	module, err := unpack(o.ctx, data)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	needs, err := needs(module)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	for _, n := range needs {
		if err := o.add(n); err != nil {
			return err
		}
	}
	o.list = append(o.list, Module{name, module})
	return nil
}

// unpack asks xz: the kernel could do it as well, but at the pace of an emulated processor, at every boot.
func unpack(ctx context.Context, data []byte) ([]byte, error) {
	c := exec.CommandContext(ctx, "xz", "-dc")
	c.Stdin = bytes.NewReader(data)
	return c.Output()
}

// needs reads what depmod would read: the modules whose symbols a module uses, and those it asks to come before it.
func needs(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(line, "depends="); ok {
			names = append(names, strings.Split(list, ",")...)
		}
		if list, ok := strings.CutPrefix(line, "softdep=pre:"); ok {
			list, _, _ = strings.Cut(list, "post:")
			names = append(names, strings.Fields(list)...)
		}
	}
	return slices.DeleteFunc(names, func(n string) bool { return n == "" }), nil
}
