package image

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// endpoint is one host that may answer for a registry, as hosts.toml describes it
// (https://github.com/containerd/containerd/blob/main/docs/hosts.md).
type endpoint struct {
	scheme, host, path string // http or https; host[:port]; API root, usually /v2
	resolve, pull      bool   // whether it is trusted to say what a tag means; whether it hands out content
	ca                 []string
	client             [][2]string // certificate and key file; without a key file the certificate's file holds both
	skipVerify         bool
	header             http.Header
	dialTimeout        time.Duration // 0: the default
	own                bool          // the registry itself, or what hosts.toml calls its server, and no mirror
	guess              bool          // ask by https first; if the port does not speak TLS, go on in plain http
}

// hostsFile is the text of a hosts.toml; ca and client come as a string or as lists.
type hostsFile struct {
	hostTable
	Server string               `toml:"server"`
	Hosts  map[string]hostTable `toml:"host"`
}

type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

// endpoints lists the hosts to ask for a registry, in order; dir is read anew each time. Unlike containerd, a file
// that cannot be understood is an error: falling back to the registry itself would silently bypass a mirror.
func endpoints(dir, registry string) ([]endpoint, error) {
	found, err := hostDir(dir, registry)
	if err != nil || found == "" {
		return []endpoint{ownHost(registry)}, err
	}
	file := filepath.Join(found, "hosts.toml")
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(text) == 0 {
		return dockerCerts(found, registry)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the hosts of registry %s: %w", registry, err)
	}
	list, err := parseHosts(text, found, registry)
	if err != nil {
		return nil, fmt.Errorf("cannot understand %s: %w", file, err)
	}
	return list, nil
}

// hostDir finds the directory of a registry: host_port_, then host:port, then _default.
func hostDir(dir, registry string) (string, error) {
	if dir == "" {
		return "", nil
	}
	names := []string{registry, "_default"}
	if i := strings.LastIndexByte(registry, ':'); i > 0 {
		names = slices.Insert(names, 0, registry[:i]+"_"+registry[i+1:]+"_")
	}
	for _, name := range names {
		found := filepath.Join(dir, name)
		if _, err := os.Stat(found); err == nil {
			return found, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("cannot look up the hosts of registry %s: %w", registry, err)
		}
	}
	return "", nil
}

func parseHosts(text []byte, dir, registry string) ([]endpoint, error) {
	var file hostsFile
	if err := toml.Unmarshal(text, &file); err != nil {
		return nil, err
	}
	var list []endpoint
	for _, name := range hostOrder(text, file.Hosts) {
		e, err := file.Hosts[name].endpoint(name, dir)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", name, err)
		}
		list = append(list, e)
	}
	last, err := file.endpoint(file.Server, dir)
	if err != nil {
		return nil, fmt.Errorf("server %q: %w", file.Server, err)
	}
	if file.Server == "" {
		last = last.at(ownHost(registry))
	}
	last.own = true
	for i := range list {
		list[i].own = list[i].host == last.host || list[i].host == ownHost(registry).host
	}
	return append(list, last), nil
}

// at gives e the address and the capabilities of the registry's own host, where a hosts.toml leaves out the server.
func (e endpoint) at(own endpoint) endpoint {
	own.ca, own.client, own.header, own.dialTimeout = e.ca, e.client, e.header, e.dialTimeout
	own.skipVerify = own.skipVerify || e.skipVerify
	return own
}

// hostOrder returns the hosts in the order of the file, which a map has lost.
func hostOrder(text []byte, hosts map[string]hostTable) []string {
	var order []string
	var p unstable.Parser
	p.Reset(text)
	for p.NextExpression() {
		if p.Expression().Kind != unstable.Table && p.Expression().Kind != unstable.KeyValue {
			continue
		}
		var key []string
		for it := p.Expression().Key(); it.Next(); {
			key = append(key, string(it.Node().Data))
		}
		if len(key) < 2 || key[0] != "host" || slices.Contains(order, key[1]) {
			continue
		}
		if _, ok := hosts[key[1]]; ok {
			order = append(order, key[1])
		}
	}
	var rest []string
	for name := range hosts {
		if !slices.Contains(order, name) {
			rest = append(rest, name)
		}
	}
	slices.Sort(rest)
	return append(order, rest...)
}

func (t hostTable) endpoint(server, dir string) (e endpoint, err error) {
	if server != "" {
		if err := e.locate(server, t.OverridePath); err != nil {
			return e, err
		}
	}
	e.skipVerify = t.SkipVerify != nil && *t.SkipVerify
	if e.resolve, e.pull, err = capabilities(t.Capabilities); err != nil {
		return e, err
	}
	if e.ca, err = paths(t.CA, dir); err != nil {
		return e, fmt.Errorf("ca: %w", err)
	}
	if e.client, err = pairs(t.Client, dir); err != nil {
		return e, fmt.Errorf("client: %w", err)
	}
	if e.header, err = headers(t.Header); err != nil {
		return e, err
	}
	if t.DialTimeout != "" {
		if e.dialTimeout, err = time.ParseDuration(t.DialTimeout); err != nil {
			return e, fmt.Errorf("dial_timeout: %w", err)
		}
	}
	// containerd's rule: http together with TLS settings means that the port may speak either.
	if e.scheme == "http" && (t.SkipVerify != nil || e.ca != nil || e.client != nil) && port(e.host) != "80" {
		e.scheme, e.guess = "https", true
	}
	return e, nil
}

func (e *endpoint) locate(server string, overridePath bool) error {
	if !strings.Contains(server, "://") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil {
		return err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("must be http://host or https://host")
	}
	e.scheme, e.host = u.Scheme, u.Host
	if u.Path != "" {
		e.path = strings.TrimSuffix(path.Clean(u.Path), "/")
	}
	if !overridePath && !strings.HasSuffix(e.path, "/v2") {
		e.path += "/v2"
	}
	return nil
}

func capabilities(list []string) (resolve, pull bool, err error) {
	if len(list) == 0 {
		return true, true, nil
	}
	for _, c := range list {
		switch strings.ToLower(c) {
		case "resolve":
			resolve = true
		case "pull":
			pull = true
		case "push", "referrers": // nothing here pushes
		default:
			return false, false, fmt.Errorf("unknown capability %q; there are pull, resolve and push", c)
		}
	}
	return resolve, pull, nil
}

// texts accepts a string or a list of strings.
func texts(v any) (list []string, err error) {
	many, ok := v.([]any)
	if !ok && v != nil {
		many = []any{v}
	}
	for _, one := range many {
		text, ok := one.(string)
		if !ok {
			return nil, fmt.Errorf("%v is not a string", one)
		}
		list = append(list, text)
	}
	return list, nil
}

// paths accepts a path or a list of paths; relative ones start at dir.
func paths(v any, dir string) ([]string, error) {
	list, err := texts(v)
	for i, p := range list {
		// An empty one stays empty: in a pair it means that the key has no file of its own.
		if p != "" && !filepath.IsAbs(p) {
			list[i] = filepath.Join(dir, p)
		}
	}
	return list, err
}

// pairs accepts a path, a list of paths, or a list of [certificate, key] pairs.
func pairs(v any, dir string) (list [][2]string, err error) {
	many, ok := v.([]any)
	if !ok && v != nil {
		many = []any{v}
	}
	for _, one := range many {
		files, err := paths(one, dir)
		if err != nil {
			return nil, err
		}
		switch {
		case len(files) == 1:
			list = append(list, [2]string{files[0]})
		case len(files) == 2:
			list = append(list, [2]string{files[0], files[1]})
		default:
			return nil, fmt.Errorf("%v is not a pair of certificate and key", one)
		}
	}
	return list, nil
}

func headers(table map[string]any) (http.Header, error) {
	header := http.Header{}
	for key, v := range table {
		values, err := texts(v)
		if err != nil {
			return nil, fmt.Errorf("header %q: %w", key, err)
		}
		header[http.CanonicalHeaderKey(key)] = values
	}
	return header, nil
}

// dockerCerts reads Docker's layout of certificate files: *.crt, *.cert with *.key.
func dockerCerts(dir, registry string) ([]endpoint, error) {
	e := ownHost(registry)
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read the certificates of registry %s: %w", registry, err)
	}
	for _, f := range files {
		file := filepath.Join(dir, f.Name())
		switch filepath.Ext(file) {
		case ".crt":
			e.ca = append(e.ca, file)
		case ".cert":
			key := strings.TrimSuffix(file, ".cert") + ".key"
			if _, err := os.Stat(key); err != nil {
				key = ""
			}
			e.client = append(e.client, [2]string{file, key})
		}
	}
	return []endpoint{e}, nil
}

// ownHost is where a registry lives when nothing is configured. Loopback registries rarely have a certificate that
// anybody knows, so theirs is not checked, and plain http will do if they do not speak TLS; as containerd does.
func ownHost(registry string) endpoint {
	e := endpoint{scheme: "https", host: registry, path: "/v2", resolve: true, pull: true, own: true}
	if registry == dockerHub {
		e.host = "registry-1.docker.io"
	}
	if !loopback(registry) {
		return e
	}
	switch port(registry) {
	case "", "443":
		e.skipVerify = true
	case "80":
		e.scheme = "http"
	default:
		e.skipVerify, e.guess = true, true
	}
	return e
}

func loopback(registry string) bool {
	host, _, err := net.SplitHostPort(registry)
	if err != nil {
		host = strings.Trim(registry, "[]")
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func port(host string) string {
	_, port, _ := net.SplitHostPort(host)
	return port
}

// stranger reports whether e is not the registry itself. A mirror that serves several registries is told which one
// is meant by the query parameter ns.
func (e endpoint) stranger(registry string) bool {
	return e.host != ownHost(registry).host
}
