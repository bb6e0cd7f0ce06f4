package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/match"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// file is one entry of a layer. A path that ends in a slash is a folder.
type file struct {
	path    string
	mode    int64
	owner   int
	content []byte
}

// layer returns files, and the folders above them, as a layer in which nothing
// depends on the machine.
func layer(date time.Time, files []file) (v1.Layer, error) {
	var b bytes.Buffer
	if err := writeTar(&b, date, withParents(files)); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
}

// withParents adds the folders that files are in, and sorts.
func withParents(files []file) []file {
	all := map[string]file{}
	for _, f := range files {
		for dir := path.Dir(strings.TrimSuffix(f.path, "/")); dir != "."; dir = path.Dir(dir) {
			if _, ok := all[dir+"/"]; !ok {
				all[dir+"/"] = file{path: dir + "/", mode: 0o755}
			}
		}
		all[f.path] = f
	}
	out := make([]file, 0, len(all))
	for _, f := range all {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b file) int { return cmp.Compare(a.path, b.path) })
	return out
}

func writeTar(w io.Writer, date time.Time, files []file) error {
	tw := tar.NewWriter(w)
	for _, f := range files {
		h := &tar.Header{
			Name: f.path, Mode: f.mode, Uid: f.owner, Gid: f.owner, Size: int64(len(f.content)),
			ModTime: date, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR,
		}
		if strings.HasSuffix(f.path, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
		if _, err := tw.Write(f.content); err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
	}
	return tw.Close()
}

// writeArchive writes an OCI archive: an image layout in a tar file, as podman,
// containerd, skopeo and docker load it.
func writeArchive(to string, index v1.ImageIndex, version string, date time.Time) error {
	dir, err := os.MkdirTemp("", "holdfast-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // nothing of worth is in it
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	if err := p.ReplaceIndex(index, match.Digests(digest), layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": version})); err != nil {
		return err
	}
	files, err := readLayout(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	if err := writeTar(out, date, files); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}

func readLayout(dir string) (files []file, err error) {
	err = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(p) //nolint:gosec // a folder that this program just wrote
		files = append(files, file{path: filepath.ToSlash(rel), mode: 0o644, content: content})
		return err
	})
	return withParents(files), err
}
