package commit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
)

// Tags says whose annotated tags lead to what is deployed, where tags are
// followed instead of a branch.
type Tags struct {
	Pattern string   // as of [path.Match], without the slash: "v*"
	Signers []string // names of Config.Signers who may sign one
}

func (t *Tags) validate(c Config) error {
	if _, err := path.Match(t.Pattern, ""); t.Pattern == "" || err != nil {
		return fmt.Errorf("%q is no pattern of tags", t.Pattern)
	}
	if len(t.Signers) == 0 {
		return errors.New("nobody may sign tags")
	}
	for _, s := range t.Signers {
		if _, ok := signerOf(c, s); !ok {
			return fmt.Errorf("the signer %q of tags is not configured", s)
		}
	}
	return nil
}

// tagged checks the tag that leads to head. A lightweight tag is only a name, and
// an unsigned one only a claim: both are refused (GHSA-h829-5cg7-6hff).
func (w *walk) tagged(ctx context.Context, ev *verify.Evidence, head string) error {
	name, id, raw, err := w.h.Tag(ctx, w.v.tags.Pattern, head)
	if errors.Is(err, fs.ErrNotExist) {
		return denied("tag the commit (git tag -s)", "commit %s: no tag that fits %s leads to it", short(head), w.v.tags.Pattern)
	}
	if err != nil {
		return err
	}
	refuse := func(hint, format string, args ...any) error {
		return denied(hint, "tag %s: "+format, append([]any{clip(name)}, args...)...)
	}
	const again = "make the tag again, with another name (git tag -s)"
	if raw == nil {
		return refuse(again, "it is a lightweight tag, which nobody can sign")
	}
	if err := checkID("tag", raw, id); err != nil {
		return refuse("fetch the repository again", "%w", err)
	}
	o, err := parseTag(raw)
	switch {
	case err != nil:
		return refuse(again, "malformed: %w", err)
	case o.name != name:
		return refuse(again, "it says that it is called %s", clip(o.name))
	case o.target != head:
		return refuse(again, "it is of commit %s, not %s", short(o.target), short(head))
	}
	by, err := w.v.keys.verify(&o.object, w.now)
	if err == nil {
		err = w.v.revoked.Check(by.anchors...)
	}
	if err != nil {
		return refuse(fault.HintOf(err), "%w", err)
	}
	if !slices.Contains(w.v.tags.Signers, by.signer) {
		return refuse("have the tag made by one of the signers of tags", "signed by %s, who may not sign tags", by.signer)
	}
	ev.Checks = append(ev.Checks, verify.Check{Name: "tag", OK: true, Detail: fmt.Sprintf("%s of %s signed by %s (%s)", clip(name), short(head), by.signer, by)})
	ev.RestsOn = verify.Anchors(ev.RestsOn, by.anchors)
	ev.Facts["tag"], ev.Facts["tagSigner"] = name, by.signer
	return nil
}

// tag is an annotated tag of a commit. As an object its committer is the tagger.
type tag struct {
	object
	target, name string
}

// The beginnings of signatures, as git knows them (gpg-interface.c). A tag's
// stands at the end of its message.
var signatureBegins = []string{"-----BEGIN PGP SIGNATURE-----", "-----BEGIN PGP MESSAGE-----", "-----BEGIN SIGNED MESSAGE-----", beginSSH}

// parseTag reads an annotated tag of a commit strictly: object, type, tag and
// tagger in this order and nothing else, an empty line, the message, and at most
// one signature at its end. What is signed is everything before.
func parseTag(raw []byte) (*tag, error) {
	headers, err := split(raw)
	if err != nil {
		return nil, err
	}
	t := &tag{}
	var kind, tagger string
	for i, want := range []struct {
		key string
		to  *string
	}{{"object", &t.target}, {"type", &kind}, {"tag", &t.name}, {"tagger", &tagger}} {
		if i >= len(headers) || headers[i].key != want.key {
			return nil, fmt.Errorf("the %s header is missing or out of order", want.key)
		}
		*want.to = headers[i].value
	}
	switch {
	case len(headers) > 4:
		return nil, fmt.Errorf("unknown or repeated header %q", clip(headers[4].key))
	case !commitID.MatchString(t.target):
		return nil, errors.New("its object is not a commit id")
	case kind != "commit":
		return nil, fmt.Errorf("it is of a %s, not of a commit", clip(kind))
	}
	if t.committer, err = parseIdent(tagger); err != nil {
		return nil, fmt.Errorf("the tagger header: %w", err)
	}
	t.author = t.committer
	return t, t.cutSignature(raw, headers[3].end)
}

// cutSignature separates the signature from what it is over. git takes the last
// line that begins a signature; of two, other readers could take the first.
func (t *tag) cutSignature(raw []byte, message int) error {
	at, begins := len(raw), 0
	for from := message; from < len(raw); {
		line, _, _ := bytes.Cut(raw[from:], []byte("\n"))
		if slices.ContainsFunc(signatureBegins, func(b string) bool { return strings.HasPrefix(string(line), b) }) {
			at = from
			begins++
		}
		from += len(line) + 1
	}
	if begins > 1 {
		return errors.New("it has more than one signature")
	}
	t.payload, t.signature = raw[:at], string(raw[at:])
	return nil
}
