// Package egress owns the only way out of a sandbox: a proxy that connects to what an
// operator has allowed, and to nothing else.
//
// It guarantees that a name is looked up once, that what it leads to is judged, and that the
// address that was judged is the one that is connected to; that the metadata services of
// clouds and link-local, multicast and unspecified addresses are refused whoever allows them,
// in every form that an address may be written in; that private addresses and the loopback
// need an entry that names the host, or the network, and the port; and that each refusal is
// told. It does not look into connections: what is sent to an allowed host is not its matter.
package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// Policy is what may be connected to. The zero Policy allows nothing.
type Policy struct{ entries []entry }

// entry is one line of an operator: a name, a name that begins with "*.", or a network; and
// a port.
type entry struct {
	name   string // in lower case
	suffix string // of "*.": ".example.com"
	net    netip.Prefix
	port   uint16
}

// Parse reads entries: "host:port", "*.domain:port", "address:port" or "network/bits:port".
// A network is for addresses as they are written, and for what the names of "*.domain" lead
// to; private addresses are reached by the name of the host, or by their network.
func Parse(entries []string) (Policy, error) {
	var p Policy
	for _, text := range entries {
		e, err := parse(text)
		if err != nil {
			return Policy{}, fault.New(fault.Invalid, "internal/egress.Parse", "write host:port, *.domain:port or network/bits:port", "%q: %w", text, err)
		}
		p.entries = append(p.entries, e)
	}
	return p, nil
}

func parse(text string) (entry, error) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return entry{}, errors.New("no port")
	}
	port, err := strconv.ParseUint(text[i+1:], 10, 16)
	if err != nil || port == 0 {
		return entry{}, errors.New("the port is not a number")
	}
	e, host := entry{port: uint16(port)}, strings.ToLower(strings.Trim(text[:i], "[]"))
	if prefix, err := netip.ParsePrefix(host); err == nil {
		if e.net = prefix.Masked(); prefix.Addr().Is4In6() {
			return entry{}, errors.New("write the network as IPv4")
		}
		return e, nil
	}
	if a, err := netip.ParseAddr(host); err == nil {
		a = a.Unmap().WithZone("")
		e.net = netip.PrefixFrom(a, a.BitLen())
		return e, nil
	}
	if rest, ok := strings.CutPrefix(host, "*."); ok {
		e.suffix, host = "."+rest, rest
	} else {
		e.name = host
	}
	if !validName(host) || e.suffix != "" && !strings.Contains(host, ".") {
		return entry{}, errors.New("not the name of a host")
	}
	return e, nil
}

// validName reports whether host is a name of the DNS (RFC 1123, section 2.1), with "_" for
// services.
func validName(host string) bool {
	if len(host) == 0 || len(host) > 253 {
		return false
	}
	for label := range strings.SplitSeq(host, ".") {
		if len(label) == 0 || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

// Refusal says what was not connected to, and why.
type Refusal struct {
	Host string
	Port uint16
	Why  string
}

// Error implements error.
func (r *Refusal) Error() string { return fmt.Sprintf("%s:%d: %s", r.Host, r.Port, r.Why) }

// Resolver looks up names; a [net.Resolver] is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// resolve returns the addresses of host that may be connected to. A [Refusal] says that there
// are none.
func (p Policy) resolve(ctx context.Context, r Resolver, host string, port uint16) ([]netip.Addr, error) {
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	refuse := func(why string) ([]netip.Addr, error) { return nil, &Refusal{host, port, why} }
	if len(host) > 253 {
		host = host[:253]
		return refuse("it is no name")
	}
	if a, err := netip.ParseAddr(name); err == nil {
		if why := p.judge(a, port, false, false, false); why != "" {
			return refuse(why)
		}
		return []netip.Addr{a.Unmap().WithZone("")}, nil
	}
	if !validName(name) || numeric(name) {
		return refuse("it is no name")
	}
	allowed, named := false, false
	for _, e := range p.entries {
		if e.port == port && (e.name == name || e.suffix != "" && strings.HasSuffix(name, e.suffix)) {
			allowed, named = true, named || e.name == name
		}
	}
	if !allowed { // and nobody is asked about it: a name can carry what nobody is to learn
		return refuse("no entry allows it")
	}
	addrs, err := r.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", name, err)
	}
	var out []netip.Addr
	why := "it has no address"
	for _, a := range addrs {
		w := p.judge(a, port, allowed, named, name == "localhost")
		if w == "" {
			out = append(out, a.Unmap().WithZone(""))
		} else {
			why = w
		}
	}
	if len(out) == 0 {
		return refuse(why)
	}
	return out, nil
}

// numeric reports whether the last label of a name is a number: such a name is an address in
// one of its old forms to some resolvers (127.1, 0x7f000001).
func numeric(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	_, err := strconv.ParseUint(last, 0, 64)
	return err == nil || strings.Trim(last, "0123456789") == ""
}

// judge says why an address may not be connected to; "" if it may. allowed says that an entry
// allows the name that led to it, named that the entry is that very name, and local that the
// name is this machine's.
func (p Policy) judge(a netip.Addr, port uint16, allowed, named, local bool) string {
	if a.Zone() != "" {
		return "it has a zone"
	}
	covered := false
	for _, e := range p.entries {
		// A network is about private addresses only if it is one of them: 0.0.0.0/0 is not.
		inner := private(e.net.Addr())
		covered = covered || e.net.IsValid() && e.port == port && e.net.Contains(a.Unmap()) && (inner || !private(a.Unmap()))
	}
	for _, a := range forms(a) {
		switch {
		case never(a):
			return fmt.Sprintf("%s is a metadata service, or no address of a host", a)
		case covered || named && (!a.IsLoopback() || local):
		case !allowed:
			return "no entry allows it"
		case private(a):
			return fmt.Sprintf("%s is private, and no entry names the host or the network", a)
		}
	}
	return ""
}

// forms returns an address and the IPv4 address that it stands for, if it does: mapped (RFC
// 4291), by 6to4 (RFC 3056), Teredo (RFC 4380), NAT64 (RFC 6052) and ISATAP (RFC 5214).
func forms(a netip.Addr) []netip.Addr {
	out := []netip.Addr{a.Unmap()}
	if !out[0].Is6() {
		return out
	}
	b := a.As16()
	v4 := func(at int) netip.Addr { return netip.AddrFrom4([4]byte(b[at : at+4])) }
	switch {
	case b[0] == 0x20 && b[1] == 0x02:
		out = append(out, v4(2))
	case b[0] == 0x20 && b[1] == 0x01 && b[2] == 0 && b[3] == 0:
		out = append(out, v4(4), netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]}))
	case b[0] == 0 && b[1] == 0x64 && b[2] == 0xff && b[3] == 0x9b:
		out = append(out, v4(12))
	case netip.MustParsePrefix("::ffff:0:0:0/96").Contains(a): // SIIT (RFC 7915)
		out = append(out, v4(12))
	case netip.MustParsePrefix("::/96").Contains(a) && a != netip.IPv6Unspecified() && a != netip.IPv6Loopback():
		out = append(out, v4(12))
	}
	if (b[8]|2) == 2 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe {
		out = append(out, v4(12))
	}
	return out
}

// metadata are addresses at which clouds hand out credentials, apart from link-local ones.
var metadata = []netip.Prefix{
	netip.MustParsePrefix("fd00:ec2::/32"),       // AWS
	netip.MustParsePrefix("fd20:ce::/32"),        // Google Cloud
	netip.MustParsePrefix("fd00:42::/32"),        // Scaleway
	netip.MustParsePrefix("fd00:a9fe:a9fe::/48"), // Linode
	netip.MustParsePrefix("100.96.0.96/32"),      // Volcano Engine
	netip.MustParsePrefix("100.100.100.200/32"),  // Alibaba Cloud
	netip.MustParsePrefix("168.63.129.16/32"),    // Azure
	netip.MustParsePrefix("192.0.0.192/32"),      // Oracle Cloud
}

// never reports whether nobody may allow an address.
func never(a netip.Addr) bool {
	return a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || !a.IsValid() ||
		netip.MustParsePrefix("0.0.0.0/8").Contains(a) || netip.MustParsePrefix("240.0.0.0/4").Contains(a) ||
		slices.ContainsFunc(metadata, func(m netip.Prefix) bool { return m.Contains(a) })
}

// internal are networks that no host of the Internet is in (RFC 6890), apart from those that
// net/netip knows.
var internal = []netip.Prefix{
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("fec0::/10"), netip.MustParsePrefix("64:ff9b:1::/48"),
}

func private(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLoopback() || slices.ContainsFunc(internal, func(m netip.Prefix) bool { return m.Contains(a) })
}

// Split returns host and port of an address.
func Split(address string) (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q is not a port", text)
	}
	return host, uint16(n), nil
}
