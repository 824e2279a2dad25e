package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Rules writes the engine's own nftables table. In nft's language it reads:
//
//	table inet evenkeel {
//	  map ip4  { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }   # one host address
//	  map any4 { type inet_proto . inet_service : ipv4_addr . inet_service }               # every host address
//	  map ip6, map any6                                                                    # the same for IPv6
//	  chain guard       { type filter hook prerouting priority raw; iifname "ek0" ip daddr 127.0.0.0/8 drop }
//	  chain prerouting  { type nat hook prerouting priority dstnat; fib daddr type local jump hostports }
//	  chain output      { type nat hook output priority dstnat; fib daddr type local jump hostports }
//	  chain hostports   { dnat ip to ip daddr . meta l4proto . th dport map @ip4
//	                      dnat ip to meta l4proto . th dport map @any4
//	                      … the same for IPv6, except to ::1 }
//	  chain postrouting { type nat hook postrouting priority srcnat
//	                      oifname "ek0" ip saddr 127.0.0.0/8 masquerade
//	                      oifname "ek0" ip saddr <subnet> ct status dnat masquerade
//	                      oifname != "ek0" ip saddr <subnet> ip daddr != 224.0.0.0/4 masquerade }
//	}
//
// Host ports are map elements and not rules: looking one up costs the same with one pod or a thousand, the kernel
// refuses a second owner of a key, and each carries its pod's id as a comment, so they can be removed by the id
// alone. A connection to 127.0.0.1 keeps its loopback source until postrouting, which is why the bridge has
// route_localnet set; the guard chain drops what a pod would send to the host's loopback through that opening. IPv6
// has no route_localnet, so a host port does not answer on ::1 and the connection is refused at once.
//
// One caller at a time: whoever has the host's turn.
type rules struct {
	table  *nftables.Table
	bridge string
	ns     int // descriptor of the host's network namespace; 0: the current one
	conn   *nftables.Conn
}

func newRules(table, bridge string, ns int) *rules {
	return &rules{table: &nftables.Table{Name: table, Family: nftables.TableFamilyINet}, bridge: bridge, ns: ns}
}

var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// dial returns the connection, which is kept: closing a netfilter socket within some 10 ms after elements were removed
// waits for the kernel to free them (nft_rcv_nl_event, nf_tables_trans_destroy_flush_work), which was most of the time
// of a Detach. After an error it is closed, since an answer may be left in it that the next call would take for its own.
func (r *rules) dial() (*nftables.Conn, error) {
	if r.conn == nil {
		conn, err := nftables.New(nftables.WithNetNSFd(r.ns), nftables.AsLasting(), nftables.WithSockOptions(holdWholeTable))
		if err != nil {
			return nil, fmt.Errorf("cannot talk to nftables: %w", err)
		}
		r.conn = conn
	}
	return r.conn, nil
}

// holdWholeTable makes room for a transaction, which is sent as one message: the usual buffer holds some 1900 host ports.
func holdWholeTable[C interface{ SetWriteBuffer(bytes int) error }](conn C) error {
	return conn.SetWriteBuffer(8 << 20)
}

func (r *rules) close() {
	if r.conn != nil {
		r.conn.CloseLasting()
		r.conn = nil
	}
}

// present says whether the table is there. A reload of the machine's own firewall (nft flush ruleset) removes it.
func (r *rules) present() (bool, error) {
	conn, err := r.dial()
	if err != nil {
		return false, err
	}
	if _, err = conn.ListTableOfFamily(r.table.Name, r.table.Family); err == nil {
		return true, nil
	}
	r.close()
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return false, err
}

// rewrite replaces the whole table in one transaction: no packet sees it half-written, and what an older version or
// a crash left in it is gone.
func (r *rules) rewrite(subnets []netip.Prefix, elements map[string][]nftables.SetElement) error {
	conn, err := r.dial()
	if err != nil {
		return err
	}
	conn.AddTable(r.table)
	conn.DelTable(r.table)
	conn.AddTable(r.table)
	for _, name := range mapNames {
		if err := conn.AddSet(r.portMap(name), nil); err != nil {
			return err
		}
		if err := inPieces(conn.SetAddElements, r.portMap(name), elements[name]); err != nil {
			return err
		}
	}
	r.addPortChains(conn)
	r.addPostrouting(conn, subnets)
	return r.flush(conn, "write")
}

// drop removes the table. A nil error means it is gone.
func (r *rules) drop() error {
	conn, err := r.dial()
	if err != nil {
		return err
	}
	conn.AddTable(r.table)
	conn.DelTable(r.table)
	return r.flush(conn, "remove")
}

func (r *rules) flush(conn *nftables.Conn, verb string) error {
	if err := conn.Flush(); err != nil {
		r.close()
		return fmt.Errorf("cannot %s nftables table inet %s: %w", verb, r.table.Name, err)
	}
	return nil
}

// add puts elements into the maps, all or none. Those that are there already with the same value are kept.
func (r *rules) add(elements map[string][]nftables.SetElement) error {
	conn, err := r.dial()
	if err != nil {
		return err
	}
	for name, list := range elements {
		if err := inPieces(conn.SetAddElements, r.portMap(name), list); err != nil {
			return err
		}
	}
	return r.flush(conn, "add host ports to")
}

// removePod removes every element that carries the pod's id. A nil error means that there is none, also when there
// is no table.
func (r *rules) removePod(podID string) error {
	conn, err := r.dial()
	if err != nil {
		return err
	}
	for _, name := range mapNames {
		m := r.portMap(name)
		all, err := conn.GetSetElements(m)
		if err != nil {
			r.close()
			// The table is written whole, so without one map there is none. The library does not pass ENOENT on.
			if present, asked := r.present(); asked == nil && !present {
				return nil
			}
			return fmt.Errorf("cannot list nftables map %s of table inet %s: %w", name, r.table.Name, err)
		}
		mine := slices.DeleteFunc(all, func(e nftables.SetElement) bool { return e.Comment != podID })
		if len(mine) == 0 {
			continue
		}
		if err := inPieces(conn.SetDeleteElements, m, keysOf(mine)); err != nil {
			return err
		}
	}
	return r.flush(conn, "remove host ports from")
}

// inPieces sends a list of elements in messages of their own, within one transaction. A message carries its list as one
// attribute, whose length has 16 bits: some 550 elements with a pod's id fit, and the library lets the length of more wrap around.
func inPieces(send func(*nftables.Set, []nftables.SetElement) error, m *nftables.Set, list []nftables.SetElement) error {
	for piece := range slices.Chunk(list, 256) {
		if err := send(m, piece); err != nil {
			return err
		}
	}
	return nil
}

// elements lists what the maps hold, by name of the map.
func (r *rules) elements() (map[string][]nftables.SetElement, error) {
	conn, err := r.dial()
	if err != nil {
		return nil, err
	}
	all := map[string][]nftables.SetElement{}
	for _, name := range mapNames {
		if all[name], err = conn.GetSetElements(r.portMap(name)); err != nil {
			r.close()
			return nil, fmt.Errorf("cannot list nftables map %s of table inet %s: %w", name, r.table.Name, err)
		}
	}
	return all, nil
}

func keysOf(list []nftables.SetElement) []nftables.SetElement {
	keys := make([]nftables.SetElement, len(list))
	for i, e := range list {
		keys[i].Key = e.Key
	}
	return keys
}

var (
	mapNames = []string{"ip4", "any4", "ip6", "any6"}

	portKey  = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	portKey4 = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	portKey6 = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetProto, nftables.TypeInetService)
	target4  = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	target6  = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetService)
)

// portMap describes a map. Its id refers to it within one batch; the library would count ids in a global variable.
func (r *rules) portMap(name string) *nftables.Set {
	m := &nftables.Set{Table: r.table, Name: name, IsMap: true, Concatenation: true, ID: uint32(slices.Index(mapNames, name) + 1)}
	m.KeyType, m.DataType = portKey, target4
	switch name {
	case "ip4":
		m.KeyType = portKey4
	case "ip6":
		m.KeyType, m.DataType = portKey6, target6
	case "any6":
		m.DataType = target6
	}
	return m
}

// portElements turns a mapping into the map elements that lead to the pod's addresses, by name of the map.
func portElements(m mapping, pod []netip.Addr) (map[string][]nftables.SetElement, error) {
	elements := map[string][]nftables.SetElement{}
	for _, addr := range pod {
		name, served := mapFor(m.HostIP, addr)
		if !served {
			continue
		}
		key := append([]byte{protocols[m.Protocol], 0, 0, 0}, port32(m.HostPort)...)
		if !wildcard(m.HostIP) {
			key = append(m.HostIP.AsSlice(), key...)
		}
		value := append(addr.AsSlice(), port32(m.ContainerPort)...)
		elements[name] = append(elements[name], nftables.SetElement{Key: key, Val: value, Comment: m.PodID})
	}
	if len(elements) == 0 {
		return nil, fmt.Errorf("cannot map host port %s: the pod has no address of that family, only %v", describe(m.Port), pod)
	}
	return elements, nil
}

func mapFor(hostIP, pod netip.Addr) (name string, served bool) {
	if hostIP.IsValid() && hostIP.Is4() != pod.Is4() {
		return "", false
	}
	family := "6"
	if pod.Is4() {
		family = "4"
	}
	if wildcard(hostIP) {
		return "any" + family, true
	}
	return "ip" + family, true
}

func wildcard(hostIP netip.Addr) bool { return !hostIP.IsValid() || hostIP.IsUnspecified() }

// port32 is a port as it stands in a 32-bit register: network order, then padding.
func port32(p uint16) []byte { return []byte{byte(p >> 8), byte(p), 0, 0} }

func (r *rules) addPortChains(conn *nftables.Conn) {
	accept := nftables.ChainPolicyAccept
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return conn.AddChain(&nftables.Chain{Name: name, Table: r.table, Type: kind, Hooknum: hook, Priority: prio, Policy: &accept})
	}
	hostports := conn.AddChain(&nftables.Chain{Name: "hostports", Table: r.table})
	guard := base("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	r.rule(conn, guard, iif(r.bridge), saddrOrDaddr(loopback4, false, false), verdict(expr.VerdictDrop, ""))
	for _, c := range []*nftables.Chain{
		base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest),
		base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest),
	} {
		r.rule(conn, c, toLocal(), verdict(expr.VerdictJump, hostports.Name))
	}
	notLoopback6 := saddrOrDaddr(netip.PrefixFrom(netip.IPv6Loopback(), 128), false, true)
	r.rule(conn, hostports, family(unix.NFPROTO_IPV4), r.dnat("ip4"))
	r.rule(conn, hostports, family(unix.NFPROTO_IPV4), r.dnat("any4"))
	r.rule(conn, hostports, notLoopback6, r.dnat("ip6"))
	r.rule(conn, hostports, notLoopback6, r.dnat("any6"))
}

func (r *rules) addPostrouting(conn *nftables.Conn, subnets []netip.Prefix) {
	accept := nftables.ChainPolicyAccept
	c := conn.AddChain(&nftables.Chain{Name: "postrouting", Table: r.table, Type: nftables.ChainTypeNAT, Policy: &accept,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	masquerade := []expr.Any{&expr.Masq{}}
	r.rule(conn, c, oif(r.bridge, false), saddrOrDaddr(loopback4, true, false), masquerade)
	for _, p := range subnets {
		multicast := multicast4
		if p.Addr().Is6() {
			multicast = multicast6
		}
		// A pod that reaches another through a host port would get the answer straight from it, past the translation.
		r.rule(conn, c, oif(r.bridge, false), saddrOrDaddr(p, true, false), translated(), masquerade)
		r.rule(conn, c, oif(r.bridge, true), saddrOrDaddr(p, true, false), saddrOrDaddr(multicast, false, true), masquerade)
	}
}

var (
	loopback4  = netip.MustParsePrefix("127.0.0.0/8")
	multicast4 = netip.MustParsePrefix("224.0.0.0/4")
	multicast6 = netip.MustParsePrefix("ff00::/8")
)

func (r *rules) rule(conn *nftables.Conn, c *nftables.Chain, parts ...[]expr.Any) {
	conn.AddRule(&nftables.Rule{Table: r.table, Chain: c, Exprs: slices.Concat(parts...)})
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

func family(nfproto byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{nfproto}}}
}

func iif(name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(name)}}
}

func oif(name string, not bool) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Op: equal(not), Register: 1, Data: ifname(name)}}
}

func ifname(name string) []byte {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return data
}

func equal(not bool) expr.CmpOp {
	if not {
		return expr.CmpOpNeq
	}
	return expr.CmpOpEq
}

// toLocal matches packets to one of the host's own addresses.
func toLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// translated matches connections whose destination was translated: IPS_DST_NAT of nf_conntrack_common.h.
func translated() []expr.Any {
	dstNAT := binaryutil.NativeEndian.PutUint32(1 << 5)
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATUS},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: dstNAT, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// saddrOrDaddr matches packets of the prefix's family whose source (or else destination) lies in it, or not.
func saddrOrDaddr(p netip.Prefix, source, not bool) []expr.Any {
	proto, offset, size := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4)
	if p.Addr().Is6() {
		proto, offset, size = unix.NFPROTO_IPV6, 24, 16
	}
	if source {
		offset -= size
	}
	return append(family(proto),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: netmask(p), Xor: make([]byte, size)},
		&expr.Cmp{Op: equal(not), Register: 1, Data: p.Masked().Addr().AsSlice()})
}

func netmask(p netip.Prefix) []byte {
	mask := make([]byte, p.Addr().BitLen()/8)
	for bit := range p.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	return mask
}

// dnat looks the packet up in a map and sends it to the address and port found there. Keys and values are laid out
// in consecutive 32-bit registers.
func (r *rules) dnat(name string) []expr.Any {
	m := r.portMap(name)
	reg, exprs := uint32(unix.NFT_REG32_00), []expr.Any{}
	proto, words := uint32(unix.NFPROTO_IPV4), uint32(1)
	offset := uint32(16)
	if name == "ip6" || name == "any6" {
		proto, words, offset = unix.NFPROTO_IPV6, 4, 24
	}
	if name == "ip4" || name == "ip6" {
		exprs = append(exprs, &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: words * 4})
		reg += words
	}
	return append(exprs,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Payload{DestRegister: reg + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: unix.NFT_REG32_00, DestRegister: unix.NFT_REG32_00, IsDestRegSet: true, SetID: m.ID, SetName: name},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: proto, RegAddrMin: unix.NFT_REG32_00, RegProtoMin: unix.NFT_REG32_00 + words, Specified: true})
}
