package git

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
)

// endpoint is a parsed source URL.
type endpoint struct {
	scheme string // "http", "https", "ssh" or "file"
	user   string
	host   string // with the port where there is one; empty for "file"
	path   string
}

// scpLike is the short form of an SSH address: user@host:path.
var scpLike = regexp.MustCompile(`^([A-Za-z0-9_][A-Za-z0-9._-]*)@([A-Za-z0-9][A-Za-z0-9.-]*):([^:].*)$`)

// parseURL accepts the listed forms and nothing else: no helper, no option, no
// relative path can hide in a URL. The error never repeats userinfo.
func parseURL(s string) (endpoint, error) {
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == '\\' {
			return endpoint{}, errors.New("url has control characters or a backslash")
		}
	}
	if filepath.IsAbs(s) {
		return endpoint{scheme: "file", path: filepath.Clean(s)}, nil
	}
	if m := scpLike.FindStringSubmatch(s); m != nil && !strings.Contains(s, "://") {
		return sshPath(endpoint{scheme: "ssh", user: m[1], host: m[2], path: m[3]})
	}
	u, err := url.Parse(s)
	if err != nil {
		return endpoint{}, errors.New("url does not parse") // url.Error would repeat a password
	}
	if _, has := u.User.Password(); has {
		return endpoint{}, errors.New("url contains a password; use auth instead")
	}
	if strings.HasPrefix(u.Host, "-") {
		return endpoint{}, errors.New("url has a host that begins with a dash")
	}
	if u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" {
		return endpoint{}, errors.New("url has a query or a fragment")
	}
	ep := endpoint{scheme: u.Scheme, user: u.User.Username(), host: u.Host, path: u.Path}
	switch u.Scheme {
	case "file":
		if u.Host != "" || !filepath.IsAbs(u.Path) {
			return endpoint{}, errors.New("file url is not file:///absolute/path")
		}
		ep.path = filepath.Clean(u.Path)
		return ep, nil
	case "http", "https":
	case "ssh":
		return sshPath(ep)
	default:
		return endpoint{}, fmt.Errorf("url scheme %q is not supported", u.Scheme)
	}
	if u.Hostname() == "" || strings.Trim(u.Path, "/") == "" {
		return endpoint{}, errors.New("url has no host or no path")
	}
	return ep, nil
}

// sshPath refuses what the server's command line could take for an option.
func sshPath(ep endpoint) (endpoint, error) {
	if ep.host == "" || strings.Trim(ep.path, "/") == "" {
		return endpoint{}, errors.New("url has no host or no path")
	}
	if strings.HasPrefix(ep.path, "-") {
		return endpoint{}, errors.New("url has a path that begins with a dash")
	}
	return ep, nil
}

// loopback reports whether ep's host is this machine.
func (ep endpoint) loopback() bool {
	host := ep.host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return ip != nil && ip.IsLoopback()
}
