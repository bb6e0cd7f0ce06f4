package terraform

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// A saved plan is a zip file that holds the configuration that it was made from, below
// tfconfig/: modules.json names the folder of each module, and m-KEY/ has its files. An apply
// uses that, and not what is on disk.

const embeddedDir = "tfconfig/"

// sameConfiguration refuses a saved plan that holds another configuration than was judged.
// own are the files that Holdfast adds, by their path in the snapshot.
func (c *configuration) sameConfiguration(saved []byte, own map[string][]byte) error {
	const op = "targets/terraform.Plan"
	denied := func(format string, args ...any) error {
		return fault.New(fault.Denied, op, "find out which provider or program wrote it", "the saved plan does not hold the configuration that was judged: "+format, args...)
	}
	if n := zipEntries(saved); n > maxZipEntries {
		return denied("it has %d files", n)
	}
	z, err := zip.NewReader(bytes.NewReader(saved), int64(len(saved)))
	if err != nil {
		return denied("%w", err)
	}
	files := map[string]*zip.File{}
	for _, f := range z.File {
		if files[f.Name] != nil {
			return denied("%s is there twice", f.Name)
		}
		files[f.Name] = f
	}
	b, err := unzip(files[embeddedDir+"modules.json"], 1<<20)
	if err != nil {
		return denied("modules.json: %w", err)
	}
	var modules []struct{ Key, Dir string }
	if err := json.Unmarshal(b, &modules); err != nil {
		return denied("modules.json: %w", err)
	}
	if len(modules) != 1+len(c.modules) {
		return denied("it has %d modules, not %d", len(modules), 1+len(c.modules))
	}
	seen := 0
	for _, m := range modules {
		dir := path.Join(c.dir, m.Dir)
		if want, ok := c.moduleDir(m.Key); !ok || dir != want {
			return denied("module %q is in %s", m.Key, dir)
		}
		prefix := embeddedDir + "m-" + m.Key + "/"
		for _, name := range c.moduleFiles(dir, m.Key == "", own) {
			want, ours := own[name]
			if !ours {
				want = c.files[name]
			}
			got, err := unzip(files[prefix+path.Base(name)], int64(len(want))+1)
			if err != nil || !bytes.Equal(got, want) {
				return denied("%s is another one, or not there", name)
			}
			seen++
		}
	}
	for name := range files {
		if strings.HasPrefix(name, embeddedDir) {
			seen--
		}
	}
	if seen != -1 { // modules.json
		return denied("it has other files besides")
	}
	return nil
}

// maxZipEntries bounds the files of a saved plan: to list a million of them takes a gigabyte.
const maxZipEntries = 10_000

// zipEntries returns how many files a zip file says that it has (APPNOTE.TXT, section 4.3.16);
// one of more than 65,534 says it elsewhere, and is too large here.
func zipEntries(b []byte) int {
	const length = 22
	tail := b[max(0, len(b)-length-math.MaxUint16):]
	i := bytes.LastIndex(tail, []byte("PK\x05\x06"))
	if i < 0 || len(tail) < i+length {
		return 0 // it is no zip file, which its reader says
	}
	return int(binary.LittleEndian.Uint16(tail[i+10:]))
}

// moduleDir returns the folder of a module by its key in a plan: "" is the root, "a.b" is
// module.a.module.b.
func (c *configuration) moduleDir(key string) (string, bool) {
	if key == "" {
		return c.dir, true
	}
	address := "module." + strings.ReplaceAll(key, ".", ".module.")
	i := slices.IndexFunc(c.modules, func(m moduleCall) bool { return m.address == address })
	if i < 0 {
		return "", false
	}
	return c.modules[i].dir, true
}

// moduleFiles returns the configuration files of a module.
func (c *configuration) moduleFiles(dir string, root bool, own map[string][]byte) []string {
	var out []string
	for _, name := range sortedKeys(c.files) {
		if path.Dir(name) == dir && isConfiguration(path.Base(name)) {
			out = append(out, name)
		}
	}
	for name := range own {
		if root && path.Dir(name) == dir && isConfiguration(path.Base(name)) {
			out = append(out, name)
		}
	}
	return out
}

// isConfiguration reports whether the tool reads a file of a module's folder as configuration.
func isConfiguration(base string) bool {
	return !ignored(base) && slices.ContainsFunc(configurationEnds, func(ext string) bool { return strings.HasSuffix(base, ext) })
}

// unzip returns the content of f, of which there may be so many bytes.
func unzip(f *zip.File, limit int64) ([]byte, error) {
	if f == nil {
		return nil, fmt.Errorf("not there")
	}
	r, err := f.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close() //nolint:errcheck // only read from
	return io.ReadAll(io.LimitReader(r, limit))
}
