package oci

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"unicode"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/sources"
)

const (
	maxDepth   = 64      // folders inside folders
	maxName    = 255     // bytes of one element of a path, as in most file systems
	maxRatio   = 200     // unfolded bytes for one that was transferred; text reaches 20, zeros 1032
	freeRatio  = 8 << 20 // unfolded bytes that no ratio is asked of
	maxHeaders = 4 << 10 // bytes of headers for each file that may be there
)

// naming says how the paths in an archive are written.
type naming int

const (
	relative naming = iota // "apps/web.yaml", "./apps/web.yaml"
	rooted                 // also "/web.rego", as opa build writes it: from the root of the bundle
)

// read brings layers and returns the files in them. What they hold is spooled to
// a file in dir that has no name any more, and goes with the tree.
func read(ctx context.Context, from Content, repository, dir string, layers []descriptor, l sources.Limits, paths naming) (*tree, error) {
	var total int64
	for _, layer := range layers {
		if layer.Size > l.Bytes || total > l.Bytes-layer.Size {
			return nil, invalid("keep large files out of it, or raise the source's limits", "it has more than %d bytes", l.Bytes)
		}
		total += layer.Size
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, onDisk(err)
	}
	spool, err := os.CreateTemp(dir, newPrefix+"*")
	if err != nil {
		return nil, onDisk(err)
	}
	if err := os.Remove(spool.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, onDisk(errors.Join(err, spool.Close()))
	}
	u := unpacker{limits: l, paths: paths, root: &node{dir: true, entries: map[string]*node{}}}
	if err := u.layers(ctx, from, repository, layers, bufio.NewWriterSize(disk{spool}, 256<<10)); err != nil {
		return nil, errors.Join(err, onDisk(spool.Close()))
	}
	return newTree(u.root, spool), nil
}

// unpacker collects the files of layers.
type unpacker struct {
	limits sources.Limits
	paths  naming
	root   *node
	nodes  int   // files and folders
	bytes  int64 // of files
}

func (u *unpacker) layers(ctx context.Context, from Content, repository string, layers []descriptor, spool *bufio.Writer) error {
	for _, layer := range layers {
		r, err := from.Open(ctx, repository, layer.Digest, layer.Size)
		if err != nil {
			return err
		}
		if in := (contextReader{ctx, r}); layer.archive() {
			err = u.unpack(in, spool)
		} else {
			err = u.file(layer.Annotations[annotationTitle], false, layer.Size, in, spool)
		}
		if err := errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	if u.root.files() == 0 {
		return invalid("push the folder that holds the stacks", "it holds no file")
	}
	return spool.Flush()
}

// unpack adds the files of a compressed tar. Nothing of it is believed: what is
// in it was chosen by whoever made it, and a few bytes can unfold to gigabytes.
func (u *unpacker) unpack(compressed io.Reader, spool io.Writer) error {
	packed := &counter{r: compressed}
	zr, err := gzip.NewReader(bufio.NewReader(packed))
	if err != nil {
		return malformed(err)
	}
	unfolded := &meter{r: zr, packed: packed, most: u.limits.Bytes + int64(u.limits.Files)*maxHeaders}
	tr := tar.NewReader(unfolded)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = u.entry(h, tr, spool)
		}
		if err != nil {
			return malformed(err)
		}
	}
	// What stands after the end is read by nobody, so nobody should rely on it.
	_, err = io.Copy(zeros{}, unfolded)
	return malformed(err)
}

// malformed classifies what a decoder says.
func malformed(err error) error {
	if err == nil {
		return nil
	}
	return fault.Wrap(fault.Invalid, "sources/oci", "push the artifact again", fmt.Errorf("its archive: %w", err))
}

// entry adds one entry of an archive.
func (u *unpacker) entry(h *tar.Header, content io.Reader, spool io.Writer) error {
	name := h.Name
	for strings.HasPrefix(name, "./") {
		name = name[2:]
	}
	if u.paths == rooted {
		name = strings.TrimPrefix(name, "/")
	}
	switch h.Typeflag {
	case tar.TypeReg:
		for k := range h.PAXRecords {
			if strings.HasPrefix(k, "GNU.sparse.") {
				return invalid("write the archive without sparse files", "%q is a sparse file", clip(h.Name))
			}
		}
		return u.file(name, h.Mode&0o100 != 0, h.Size, content, spool)
	case tar.TypeDir:
		if name = strings.TrimSuffix(name, "/"); name == "" || name == "." {
			return nil
		}
		_, err := u.folder(name)
		return err
	case tar.TypeXGlobalHeader: // git archive writes the commit there
		for k := range h.PAXRecords {
			if k != "comment" {
				return invalid("write the archive without global headers", "a global header sets %q for all that follow", clip(k))
			}
		}
		return nil
	case tar.TypeSymlink, tar.TypeLink:
		return invalid("put the file itself there", "%q is a link to %q: an artifact holds files and folders alone", clip(h.Name), clip(h.Linkname))
	}
	return invalid("take it out", "%q has the type %q: an artifact holds files and folders alone", clip(h.Name), h.Typeflag)
}

// file adds a file of size bytes.
func (u *unpacker) file(name string, executable bool, size int64, content io.Reader, spool io.Writer) error {
	if err := u.checkPath(name); err != nil {
		return err
	}
	switch {
	case size > u.limits.File:
		return invalid("keep large files out of it, or raise the source's limits", "%q has %d bytes, the limit is %d", clip(name), size, u.limits.File)
	case size > u.limits.Bytes-u.bytes:
		return invalid("keep large files out of it, or raise the source's limits", "its files have more than %d bytes", u.limits.Bytes)
	}
	parent, base := u.root, name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		var err error
		if parent, err = u.folder(name[:i]); err != nil {
			return err
		}
		base = name[i+1:]
	}
	if parent.entries[base] != nil {
		return repeated(name)
	}
	n, err := u.add(parent, base)
	if err != nil {
		return err
	}
	n.executable, n.offset, n.size = executable, u.bytes, size
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(spool, h), content, size); err != nil {
		return err
	}
	h.Sum(n.sum[:0])
	u.bytes += size
	return nil
}

// folder returns the folder called name, and makes it where it is not there.
func (u *unpacker) folder(name string) (*node, error) {
	if err := u.checkPath(name); err != nil {
		return nil, err
	}
	at := u.root
	for el := range strings.SplitSeq(name, "/") {
		next := at.entries[el]
		if next == nil {
			var err error
			if next, err = u.add(at, el); err != nil {
				return nil, err
			}
			next.dir, next.entries = true, map[string]*node{}
		}
		if !next.dir {
			return nil, repeated(name)
		}
		at = next
	}
	return at, nil
}

func (u *unpacker) add(parent *node, name string) (*node, error) {
	if u.nodes++; u.nodes > u.limits.Files {
		return nil, invalid("split the artifact, or raise the source's limits", "it has more than %d files and folders", u.limits.Files)
	}
	n := &node{name: name}
	parent.entries[name] = n
	return n, nil
}

func repeated(name string) error {
	return invalid("write the archive with each file once", "%q is there twice", clip(name))
}

// checkPath refuses names that lead out of the artifact, that two programs could
// understand differently, or that are too long.
func (u *unpacker) checkPath(name string) error {
	switch {
	case len(name) > u.limits.PathLength:
		return invalid("shorten the path", "%q… has %d bytes, the limit is %d", clip(name[:min(len(name), 64)]), len(name), u.limits.PathLength)
	case !fs.ValidPath(name) || name == ".":
		return invalid("write paths from the root of the artifact, in UTF-8 and without ..", "%q is not a path inside the artifact", clip(name))
	case strings.ContainsFunc(name, func(r rune) bool { return r == '\\' || unicode.IsControl(r) }):
		return invalid("rename the file", "%q has a backslash or a control character", clip(name))
	case strings.Count(name, "/") >= maxDepth:
		return invalid("flatten the folders", "%q… is more than %d folders deep", clip(name[:min(len(name), 64)]), maxDepth)
	}
	for el := range strings.SplitSeq(name, "/") {
		if len(el) > maxName {
			return invalid("shorten the name", "%q… has a name of %d bytes, the limit is %d", clip(name[:min(len(name), 64)]), len(el), maxName)
		}
		if strings.EqualFold(el, ".git") {
			return invalid("leave .git out of the artifact", "%q is part of a Git repository", clip(name))
		}
	}
	return nil
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int64
}

// Read implements io.Reader.
func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// meter stops a stream that unfolds to too much.
type meter struct {
	r      io.Reader
	packed *counter
	n      int64
	most   int64
}

// Read implements io.Reader.
func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	const hint = "look at how the artifact was made; it has the form of an attack on whoever unpacks it"
	switch {
	case m.n > m.most:
		return 0, invalid(hint, "it unfolds to more than %d bytes", m.most)
	case m.n > freeRatio && m.n/maxRatio > m.packed.n:
		return 0, invalid(hint, "%d bytes unfold to more than %d", m.packed.n, m.n)
	}
	return n, err
}

// zeros takes zeros alone.
type zeros struct{}

// Write implements io.Writer.
func (zeros) Write(p []byte) (int, error) {
	for _, b := range p {
		if b != 0 {
			return 0, errors.New("something stands after its end")
		}
	}
	return len(p), nil
}
