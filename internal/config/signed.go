package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/durable"
	"github.com/holdfast-dev/holdfast/internal/fault"
)

// SignatureSuffix is what the name of a file's signature ends with, after the
// name of the file.
const SignatureSuffix = ".sig"

// recordFile is where the state directory keeps what was accepted last.
const recordFile = "configuration.json"

// signHint is how a file is signed.
const signHint = "raise signed.counter, set signed.files to what holdfast check prints, and sign: ssh-keygen -Y sign -n config@holdfast.dev -f KEY "

// Record is what is kept of the operator's file that was accepted last.
type Record struct {
	Path     string                   `json:"path"`
	File     []byte                   `json:"file"`
	Digest   digest.Digest            `json:"digest"`
	Named    map[string]digest.Digest `json:"named,omitempty"`
	Signed   *Signed                  `json:"signed,omitempty"`
	Signer   string                   `json:"signer,omitempty"` // empty where no signature was needed
	Accepted time.Time                `json:"accepted"`
	// Required is the file that --require-signed named, or empty: commands that
	// work alone on this state directory hold to it.
	Required string `json:"required,omitempty"`
	// Keys is the content of the files of those who may sign the next file: who
	// can write them can not make himself a signer.
	Keys map[string][]byte `json:"keys,omitempty"`
}

// CheckSignature returns the name of the signer who signed message, or an error
// of kind Denied. keys is the content of the files that signers name.
type CheckSignature func(signers []Signer, keys map[string][]byte, message, signature []byte) (string, error)

// Verdict says in one word how a file compares with the one accepted last.
type Verdict string

// The verdicts.
const (
	First     Verdict = "first"     // none was accepted before
	Unchanged Verdict = "unchanged" // the same, and so is what it names
	Neutral   Verdict = "neutral"   // it differs, and grants neither more nor less
	Tighter   Verdict = "tighter"   // it grants less, and nothing more
	Looser    Verdict = "looser"    // it may grant more
)

// Admission is how a file that is loaded compares with the one accepted last.
type Admission struct {
	Comparison
	Verdict Verdict
	Signer  string // who signed; empty where no signature was needed
}

// ReadRecord returns what a state directory keeps, or nil if it keeps nothing.
func ReadRecord(stateDir string) (*Record, error) {
	const hint = "restore it from a backup; without it the next operator's file is accepted as the first one is"
	b, err := os.ReadFile(filepath.Join(stateDir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // no record is not an error
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "internal/config.ReadRecord", hint, "%w", err)
	}
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fault.New(fault.Denied, "internal/config.ReadRecord", hint, "%s: %w", filepath.Join(stateDir, recordFile), err)
	}
	return &r, nil
}

// Record returns what to keep of an accepted file.
func (l *Loaded) Record(signer string, now time.Time) *Record {
	return &Record{
		Path: l.Path, File: l.raw, Digest: l.Digest, Named: l.Named,
		Signed: l.Signed, Keys: l.keys, Signer: signer, Accepted: now.UTC(),
	}
}

// Write keeps the record in a state directory. A crash leaves the old one or
// the new one. The file is readable for its owner only.
func (r *Record) Write(stateDir string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("record of the configuration: %w", err)
	}
	if err := durable.Replace(filepath.Join(stateDir, recordFile), b); err != nil {
		return fmt.Errorf("record of the configuration: %w", err)
	}
	return nil
}

// FilesDigest covers every file that the operator's file names and that is no
// secret, with paths below its folder relative to it: signed.files must be it
// wherever a signature is needed, since the signature is over the operator's
// file alone.
func (l *Loaded) FilesDigest() digest.Digest {
	h := digest.SHA256.Digester()
	lines := map[string]digest.Digest{}
	for name, d := range l.Named {
		if rel, err := filepath.Rel(filepath.Dir(l.Path), name); err == nil && filepath.IsLocal(rel) {
			name = filepath.ToSlash(rel)
		}
		lines[name] = d
	}
	for _, name := range slices.Sorted(maps.Keys(lines)) {
		fmt.Fprintf(h.Hash(), "%q %s\n", name, lines[name])
	}
	return h.Digest()
}

// Admit decides whether the file may take the place of the one accepted last
// (nil: none was). It may without a signature
//
//   - if it does not ask for one and neither did the last,
//   - if it is the last one, with the same content of what it names,
//   - if it is not looser and its signed section is the last one's.
//
// Else a signer of the last file must have signed it, or of the file itself if
// the last asked for no signature, and the counter must be higher than the
// last. A smaller counter, and a file that asks for no signature any more, are
// refused whoever signed. A refusal is an error of kind Denied that names what
// became looser; the admission says the same for the record.
func (l *Loaded) Admit(last *Record, check CheckSignature) (Admission, error) {
	a := l.compare(last)
	var err error
	switch {
	case last == nil || last.Signed == nil:
		if l.Signed != nil {
			a.Signer, err = l.signedBy(l.Signed.Signers, l.keys, check)
		}
	case l.Signed == nil:
		err = denied("keep signed: as it is; to be rid of it, remove "+recordFile+" from the state directory, knowing that whoever can do that decides what is trusted",
			"the section signed: was removed")
	case l.Signed.Counter < last.Signed.Counter:
		err = denied("use the newest file, or sign this one with a higher counter", "signed.counter went back from %d to %d: this is an older file", last.Signed.Counter, l.Signed.Counter)
	case a.Verdict == Unchanged, a.Verdict != Looser && reflect.DeepEqual(l.Signed, last.Signed):
	case l.Signed.Counter == last.Signed.Counter:
		err = denied(signHint+filepath.Base(l.Path), "it is not signed anew: signed.counter is %d, as before", l.Signed.Counter)
	default:
		a.Signer, err = l.signedBy(last.Signed.Signers, last.Keys, check)
	}
	return a, a.refuse(err)
}

// RequireSigned checks that the file is signed by one of signers, whatever it
// and the file before it ask for, and returns who that is. keys is the content
// of the files that signers name.
func (l *Loaded) RequireSigned(signers []Signer, keys map[string][]byte, check CheckSignature) (string, error) {
	if l.Signed == nil {
		return "", Admission{}.refuse(denied("add signed: with signers, counter and files, and sign the file", "a signed file is required, and this one has no section signed:"))
	}
	signer, err := l.signedBy(signers, keys, check)
	return signer, Admission{}.refuse(err)
}

// signedBy checks the signature beside the file.
func (l *Loaded) signedBy(signers []Signer, keys map[string][]byte, check CheckSignature) (string, error) {
	hint := signHint + filepath.Base(l.Path)
	signature, err := readFile(l.Path + SignatureSuffix)
	if err != nil {
		return "", denied(hint, "it is not signed: %w", err)
	}
	signer, err := check(signers, keys, l.raw, signature)
	if err != nil {
		return "", denied(hint, "%w", err)
	}
	if want := l.FilesDigest(); l.Signed.Files != want.String() {
		return "", denied("look at the files that it names; if they are as they should be, set signed.files to "+want.String()+" and sign again",
			"its signature does not cover the files that it names as they are: signed.files is %q", l.Signed.Files)
	}
	return signer, nil
}

func denied(hint, format string, args ...any) error {
	return fault.New(fault.Denied, "internal/config.Admit", hint, format, args...)
}

// refuse adds to a refusal what became looser.
func (a Admission) refuse(err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("the operator's file is refused: %w", err)
	if len(a.Looser) > 0 {
		err = fmt.Errorf("%w\nit is looser than the file accepted last:\n%s", err, strings.Join(a.Looser, "\n"))
	}
	return fault.Wrap(fault.Denied, "internal/config.Admit", "", err)
}

// compare compares the file with the one accepted last.
func (l *Loaded) compare(last *Record) Admission {
	if last == nil {
		return Admission{Verdict: First}
	}
	if l.Digest == last.Digest && l.Path == last.Path && bytes.Equal(l.raw, last.File) {
		return Admission{Verdict: Unchanged}
	}
	before, err := parse(last.Path, last.File, filepath.Dir(last.Path))
	if err != nil {
		return Admission{Verdict: Looser, Comparison: Comparison{Looser: []string{"everything: this Holdfast cannot read the file accepted last"}}}
	}
	c := Compare(before, &l.Operator)
	c.files(last.Named, l.Named, commonFolders(before, &l.Operator))
	a := Admission{Comparison: c, Verdict: Neutral}
	switch {
	case len(c.Looser) > 0:
		a.Verdict = Looser
	case len(c.Tighter) > 0:
		a.Verdict = Tighter
	}
	return a
}

// names reports whether f holds keys of those who may sign.
func (s *Signed) names(f string) bool {
	return s != nil && slices.ContainsFunc(s.Signers, func(s Signer) bool { return s.AllowedSignersFile == f })
}
