package commit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// Collect returns h, with what is asked of it and what comes back noted in a, so that
// the verdict can be replayed: raw commits and tags, files, notes, and which paths a
// commit changes.
func Collect(h History, a *verify.Answers) History { return collector{h, a} }

type collector struct {
	h History
	a *verify.Answers
}

// question names a request. Paths and patterns come last: they may hold anything.
func question(what string, of ...string) string { return what + " " + strings.Join(of, " ") }

// named is what a tag lookup returns.
type named struct {
	Name   string `json:"name"`
	Object string `json:"object"`
	Raw    []byte `json:"raw,omitempty"`
}

// add notes v as JSON. What is not there is noted too; another error is no answer.
func (c collector) add(q string, v any, err error) {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.a.None(q)
	case err == nil:
		b, err := json.Marshal(v)
		if err == nil { // strings and bytes always marshal
			c.a.Add(q, b)
		}
	}
}

// Commit implements [History].
func (c collector) Commit(ctx context.Context, id string) ([]byte, error) {
	raw, err := c.h.Commit(ctx, id)
	if err == nil {
		c.a.Add(question("commit", id), raw)
	}
	return raw, err
}

// ChangedPaths implements [History].
func (c collector) ChangedPaths(ctx context.Context, parent, child string) ([]string, error) {
	paths, err := c.h.ChangedPaths(ctx, parent, child)
	c.add(question("paths", child, parent), paths, err)
	return paths, err
}

// File implements [History].
func (c collector) File(ctx context.Context, id, path string) ([]byte, error) {
	b, err := c.h.File(ctx, id, path)
	c.add(question("file", id, path), b, err)
	return b, err
}

// Notes implements [History].
func (c collector) Notes(ctx context.Context, ref, id string) ([][]byte, error) {
	list, err := c.h.Notes(ctx, ref, id)
	c.add(question("notes", id, ref), list, err)
	return list, err
}

// Tag implements [History].
func (c collector) Tag(ctx context.Context, pattern, id string) (name, object string, raw []byte, err error) {
	name, object, raw, err = c.h.Tag(ctx, pattern, id)
	c.add(question("tag", id, pattern), named{name, object, raw}, err)
	return name, object, raw, err
}

// Replay returns the history as one verification found it. The raw bytes of commits
// and tags are checked against their ids, as always; which paths a commit changes is
// the word of whoever recorded it. What was not asked then is an error.
func Replay(in verify.Inputs) History { return past{in} }

type past struct{ in verify.Inputs }

func (p past) answer(q string) ([]byte, error) {
	b, there, err := p.in.Answer(q)
	if err == nil && !there {
		err = fmt.Errorf("%s: %w", q, fs.ErrNotExist)
	}
	return b, err
}

func (p past) decode(q string, into any) error {
	b, err := p.answer(q)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fault.New(fault.Invalid, op+".Replay", "", "%s: %w", q, err)
	}
	return nil
}

// Commit implements [History].
func (p past) Commit(_ context.Context, id string) ([]byte, error) {
	return p.answer(question("commit", id))
}

// ChangedPaths implements [History].
func (p past) ChangedPaths(_ context.Context, parent, child string) (paths []string, err error) {
	err = p.decode(question("paths", child, parent), &paths)
	return paths, err
}

// File implements [History].
func (p past) File(_ context.Context, id, path string) (b []byte, err error) {
	err = p.decode(question("file", id, path), &b)
	return b, err
}

// Notes implements [History].
func (p past) Notes(_ context.Context, ref, id string) (list [][]byte, err error) {
	err = p.decode(question("notes", id, ref), &list)
	return list, err
}

// Tag implements [History].
func (p past) Tag(_ context.Context, pattern, id string) (name, object string, raw []byte, err error) {
	var t named
	err = p.decode(question("tag", id, pattern), &t)
	return t.Name, t.Object, t.Raw, err
}
