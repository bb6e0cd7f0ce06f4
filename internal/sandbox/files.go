package sandbox

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"time"
)

const (
	// maxContent is the largest file that is sent, in bytes; a larger one cannot be read.
	maxContent = 8 << 20
	// maxSmall is up to which size the answer to a stat carries the content
	// along: what is asked about is mostly read next.
	maxSmall = 64 << 10
	// maxReply bounds one frameReply: a file, or the list of a large folder.
	maxReply = 32 << 20
	maxName  = 4 << 10
)

// question is what a worker asks about one file.
type question struct {
	Op   operation `json:"op"`
	Name string    `json:"name"`
}

type operation string

const (
	opStat     operation = "stat"
	opLstat    operation = "lstat"
	opReadDir  operation = "readdir"
	opReadLink operation = "readlink"
	opRead     operation = "read"
)

// reply is the first line of a frameReply; the content follows it.
type reply struct {
	Missing bool   `json:"missing,omitempty"` // fs.ErrNotExist
	Error   string `json:"error,omitempty"`
	Info    *info  `json:"info,omitempty"`
	Entries []info `json:"entries,omitempty"`
	Link    string `json:"link,omitempty"`
	Read    bool   `json:"read,omitempty"` // the content is there, if only of no bytes
	content []byte // after the line
}

// info is what is sent of a file's fs.FileInfo. It is a fs.DirEntry as well.
type info struct {
	N string      `json:"n"`
	S int64       `json:"s,omitempty"`
	M fs.FileMode `json:"m,omitempty"`
}

func (i info) Name() string               { return i.N }
func (i info) Size() int64                { return i.S }
func (i info) Mode() fs.FileMode          { return i.M }
func (i info) ModTime() time.Time         { return time.Time{} }
func (i info) IsDir() bool                { return i.M.IsDir() }
func (i info) Sys() any                   { return nil }
func (i info) Type() fs.FileMode          { return i.M.Type() }
func (i info) Info() (fs.FileInfo, error) { return i, nil }

func infoOf(fi fs.FileInfo) *info {
	return &info{N: fi.Name(), S: fi.Size(), M: fi.Mode()}
}

// server answers a worker's questions from a file system. It runs in the parent,
// so the questions are hostile: each is about one valid path of fsys, and costs
// what reading that path costs.
type server struct {
	fsys fs.FS
	err  error // the first one that is not fs.ErrNotExist
}

func (s *server) answer(payload []byte) ([]byte, []byte) {
	var q question
	r := &reply{}
	err := json.Unmarshal(payload, &q)
	if err == nil {
		err = s.look(q, r)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r = &reply{Missing: true}
	case err != nil:
		if s.err == nil {
			s.err = err
		}
		r = &reply{Error: err.Error()}
	}
	head, err := json.Marshal(r)
	if err != nil || len(head)+1+len(r.content) > maxReply {
		head, r.content = []byte(`{"error":"too large to be sent"}`), nil
	}
	return append(head, '\n'), r.content
}

func (s *server) look(q question, r *reply) error {
	if len(q.Name) > maxName || !fs.ValidPath(q.Name) {
		return &fs.PathError{Op: string(q.Op), Path: "…", Err: fs.ErrInvalid}
	}
	switch q.Op {
	case opStat:
		return s.stat(q.Name, r)
	case opRead:
		return s.read(q.Name, r)
	case opReadDir:
		return s.readDir(q.Name, r)
	case opLstat, opReadLink:
		return s.link(q, r)
	}
	return &fs.PathError{Op: "ask", Path: q.Name, Err: fs.ErrInvalid}
}

func (s *server) stat(name string, r *reply) error {
	fi, err := fs.Stat(s.fsys, name)
	if err != nil {
		return err
	}
	if r.Info = infoOf(fi); fi.Mode().IsRegular() && fi.Size() <= maxSmall {
		return s.read(name, r)
	}
	return nil
}

func (s *server) read(name string, r *reply) error {
	f, err := s.fsys.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // nothing was written
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if r.Info = infoOf(fi); fi.IsDir() {
		return nil
	}
	if r.content, err = io.ReadAll(io.LimitReader(f, maxContent+1)); err != nil {
		return err
	}
	if len(r.content) > maxContent {
		return &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("larger than %d bytes", maxContent)}
	}
	r.Read = true
	return nil
}

func (s *server) readDir(name string, r *reply) error {
	entries, err := fs.ReadDir(s.fsys, name)
	for _, e := range entries {
		r.Entries = append(r.Entries, info{N: e.Name(), M: e.Type()})
	}
	return err
}

func (s *server) link(q question, r *reply) error {
	links, ok := s.fsys.(fs.ReadLinkFS)
	if !ok {
		return &fs.PathError{Op: string(q.Op), Path: q.Name, Err: errors.ErrUnsupported}
	}
	if q.Op == opReadLink {
		var err error
		r.Link, err = links.ReadLink(q.Name)
		return err
	}
	fi, err := links.Lstat(q.Name)
	if err == nil {
		r.Info = infoOf(fi)
	}
	return err
}

// files is the parent's file system, as a worker sees it. What was asked once in
// a rendering is not asked again: a snapshot does not change.
type files struct {
	in    *bufio.Reader
	out   *bufio.Writer
	known map[question]*reply
	// lost is the error that ended the connection; nothing works after it.
	lost error
}

// linkFiles are files of a parent whose file system knows symbolic links.
type linkFiles struct{ *files }

var (
	_ fs.StatFS     = (*files)(nil)
	_ fs.ReadDirFS  = (*files)(nil)
	_ fs.ReadFileFS = (*files)(nil)
	_ fs.ReadLinkFS = linkFiles{}
)

func (f *files) ask(op operation, name string) (*reply, error) {
	fail := func(err error) error { return &fs.PathError{Op: string(op), Path: name, Err: err} }
	if !fs.ValidPath(name) || len(name) > maxName {
		return nil, fail(fs.ErrInvalid)
	}
	q := question{op, name}
	r := f.known[q]
	if r == nil {
		var err error
		if r, err = f.exchange(q); err != nil {
			return nil, fail(err)
		}
		f.known[q] = r
	}
	switch {
	case r.Missing:
		return nil, fail(fs.ErrNotExist)
	case r.Error != "":
		return nil, fail(errors.New(r.Error))
	}
	return r, nil
}

func (f *files) exchange(q question) (*reply, error) {
	if f.lost != nil {
		return nil, f.lost
	}
	payload, err := json.Marshal(q)
	if err == nil {
		err = writeFrame(f.out, frameFile, payload)
	}
	if err == nil {
		_, payload, err = readFrame(f.in, bounds{frameReply: maxReply})
	}
	var r *reply
	if err == nil {
		r, err = parseReply(payload)
	}
	f.lost = err
	return r, err
}

// parseReply takes a frameReply apart.
func parseReply(payload []byte) (*reply, error) {
	head, content, ok := bytes.Cut(payload, []byte("\n"))
	if !ok {
		return nil, errFrame
	}
	r := &reply{}
	if err := json.Unmarshal(head, r); err != nil {
		return nil, err
	}
	r.content = content
	return r, nil
}

// Stat implements [fs.StatFS].
func (f *files) Stat(name string) (fs.FileInfo, error) {
	r, err := f.ask(opStat, name)
	if err != nil {
		return nil, err
	}
	return answered(r, opStat, name)
}

func answered(r *reply, op operation, name string) (fs.FileInfo, error) {
	if r.Info == nil {
		return nil, &fs.PathError{Op: string(op), Path: name, Err: errFrame}
	}
	return *r.Info, nil
}

// ReadDir implements [fs.ReadDirFS].
func (f *files) ReadDir(name string) ([]fs.DirEntry, error) {
	r, err := f.ask(opReadDir, name)
	if err != nil {
		return nil, err
	}
	out := make([]fs.DirEntry, len(r.Entries))
	for i, e := range r.Entries {
		out[i] = e
	}
	return out, nil
}

// content returns what is known of name with its content, unless it is a folder.
func (f *files) content(name string) (*reply, error) {
	if r := f.known[question{opStat, name}]; r != nil && r.Read {
		return r, nil
	}
	return f.ask(opRead, name)
}

// ReadFile implements [fs.ReadFileFS].
func (f *files) ReadFile(name string) ([]byte, error) {
	r, err := f.content(name)
	if err != nil {
		return nil, err
	}
	if !r.Read {
		return nil, &fs.PathError{Op: string(opRead), Path: name, Err: errors.New("is a directory")}
	}
	return bytes.Clone(r.content), nil
}

// Open implements [fs.FS].
func (f *files) Open(name string) (fs.File, error) {
	r, err := f.content(name)
	if err != nil {
		return nil, err
	}
	fi, err := answered(r, opRead, name)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return &openFile{Reader: bytes.NewReader(r.content), info: fi}, nil
	}
	entries, err := f.ReadDir(name)
	return &openDir{info: fi, entries: entries}, err
}

// ReadLink implements [fs.ReadLinkFS].
func (f linkFiles) ReadLink(name string) (string, error) {
	r, err := f.ask(opReadLink, name)
	if err != nil {
		return "", err
	}
	return r.Link, nil
}

// Lstat implements [fs.ReadLinkFS].
func (f linkFiles) Lstat(name string) (fs.FileInfo, error) {
	r, err := f.ask(opLstat, name)
	if err != nil {
		return nil, err
	}
	return answered(r, opLstat, name)
}

type openFile struct {
	*bytes.Reader
	info fs.FileInfo
}

func (f *openFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *openFile) Close() error               { return nil }

type openDir struct {
	info    fs.FileInfo
	entries []fs.DirEntry
}

func (d *openDir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *openDir) Close() error               { return nil }
func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: path.Base(d.info.Name()), Err: errors.New("is a directory")}
}

// ReadDir implements [fs.ReadDirFile].
func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 {
		all := d.entries
		d.entries = nil
		return all, nil
	}
	if len(d.entries) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(d.entries))
	some := d.entries[:n]
	d.entries = d.entries[n:]
	return some, nil
}
