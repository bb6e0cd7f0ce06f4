package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

func writeFile(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// company is a folder with an operator's file. Its signatures are "NAME of
// CONTENT of the key file": real ones are checked where they are made.
type company struct {
	t    *testing.T
	dir  string
	last *Record
}

func newCompany(t *testing.T) *company {
	c := &company{t: t, dir: t.TempDir()}
	for name, content := range map[string]string{"alice.keys": "alice's key", "carol.keys": "carol's key", "orders.keys": "alice's key"} {
		writeFile(t, filepath.Join(c.dir, name), content)
	}
	return c
}

func (c *company) path() string { return filepath.Join(c.dir, "holdfast.yaml") }

// write writes the operator's file with a section signed: (empty: none), and
// signs it as a key (empty: not at all).
func (c *company) write(text, signed, key string) {
	c.t.Helper()
	writeFile(c.t, c.path(), text)
	if signed != "" {
		writeFile(c.t, c.path(), text+signed)
		l, err := Load(c.path())
		if err != nil {
			c.t.Fatal(err)
		}
		if l.Signed.Files == "" {
			signed = strings.Replace(signed, "signed: {", "signed: {files: \""+l.FilesDigest().String()+"\", ", 1)
		}
		writeFile(c.t, c.path(), text+signed)
	}
	if key == "" {
		_ = os.Remove(c.path() + SignatureSuffix)
		return
	}
	writeFile(c.t, c.path()+SignatureSuffix, key+"\n"+text+signed)
}

// checkTest takes a signature that says the key and repeats the message.
func checkTest(signers []Signer, keys map[string][]byte, message, signature []byte) (string, error) {
	key, signed, _ := strings.Cut(string(signature), "\n")
	if signed != string(message) {
		return "", errors.New("does not fit the document")
	}
	for _, s := range signers {
		if string(keys[s.AllowedSignersFile]) == key {
			return s.Name, nil
		}
	}
	return "", errors.New("unknown key")
}

// admit loads the file, and keeps it if it is admitted.
func (c *company) admit() (Admission, error) {
	c.t.Helper()
	l, err := Load(c.path())
	if err != nil {
		c.t.Fatal(err)
	}
	a, err := l.Admit(c.last, checkTest)
	if err != nil {
		if fault.KindOf(err) != fault.Denied {
			c.t.Errorf("a refusal is of kind %s: %v", fault.KindOf(err), err)
		}
		return a, err
	}
	if err := l.Record(a.Signer, epoch).Write(c.dir); err != nil {
		c.t.Fatal(err)
	}
	if c.last, err = ReadRecord(c.dir); err != nil {
		c.t.Fatal(err)
	}
	return a, nil
}

func (c *company) accepts(step string, verdict Verdict, signer string) {
	c.t.Helper()
	if a, err := c.admit(); err != nil || a.Verdict != verdict || a.Signer != signer {
		c.t.Fatalf("%s: %+v, %v; want %s signed by %q", step, a, err, verdict, signer)
	}
}

func (c *company) refuses(step, want string) {
	c.t.Helper()
	if _, err := c.admit(); err == nil || !strings.Contains(err.Error(), want) {
		c.t.Fatalf("%s: got %v, want a refusal with %q", step, err, want)
	}
}

const (
	counter1 = "signed: {counter: 1, signers: [{name: alice, allowedSignersFile: orders.keys}]}\n"
	counter2 = "signed: {counter: 2, signers: [{name: alice, allowedSignersFile: orders.keys}]}\n"
	counter3 = "signed: {counter: 3, signers: [{name: alice, allowedSignersFile: orders.keys}]}\n"
)

func TestAdmitUnsigned(t *testing.T) {
	t.Parallel()
	c := newCompany(t)
	c.write(operator, "", "")
	c.accepts("the first file", First, "")
	c.accepts("again", Unchanged, "")
	c.write(strings.Replace(operator, "[shop, ", "[", 1), "", "")
	c.accepts("a tighter one", Tighter, "")
	c.write(operator, "", "")
	c.accepts("a looser one, which nobody forbids", Looser, "")
	c.write(operator+"workers: 3\n", "", "")
	c.accepts("other workers", Neutral, "")
}

func TestAdmitSigned(t *testing.T) {
	t.Parallel()
	tight := strings.Replace(operator, "[shop, ", "[", 1)
	loose := strings.Replace(operator, "[shop, ", "[shop, kube-system, ", 1)
	c := newCompany(t)
	c.write(operator, counter1, "")
	c.refuses("a first file that is not signed", "it is not signed")
	c.write(operator, counter1, "mallory's key")
	c.refuses("a first file of a stranger", "unknown key")
	c.write(operator, counter1, "alice's key")
	c.accepts("the first file", First, "alice")
	c.write(operator, counter1, "")
	c.write(operator, counter1, "mallory's key") // nobody looks at it
	c.accepts("again", Unchanged, "")
	c.write(tight, counter1, "")
	c.accepts("a tighter one, not signed", Tighter, "")
	c.write(loose, counter1, "alice's key")
	c.refuses("a looser one with the same counter", "allow[0].namespaces: kube-system was added")
	c.write(loose, counter2, "")
	c.refuses("a looser one that is not signed", "it is not signed")
	c.write(loose, counter2, "mallory's key")
	c.refuses("a looser one of a stranger", "unknown key")
	c.write(loose, strings.Replace(counter2, "orders.keys", "carol.keys", 1), "carol's key")
	c.refuses("one that makes its signer a signer", "unknown key")
	c.write(loose, counter2, "alice's key")
	c.accepts("a looser one of a signer", Looser, "alice")
	c.write(operator, counter1, "alice's key")
	c.refuses("an older one, signed by a signer", "went back from 2 to 1")
	c.write(tight, "", "alice's key")
	c.refuses("one without the section", "signed: was removed")
	c.write(operator+"workers: 3\n", counter3, "")
	c.refuses("another counter, which nobody signed", "it is not signed")
	c.write(loose, strings.Replace(counter2, "alice, allowed", "alice, notAfter: 2030-01-01, allowed", 1), "")
	c.refuses("a signer who ends, which nobody signed", "it is not signed anew")
	c.write(loose, strings.Replace(counter2, "}]}", "}, {name: carol, allowedSignersFile: carol.keys}]}", 1), "alice's key")
	c.refuses("another signer with the same counter", "signed.signers[carol]: was added")

	// Who writes the file with the keys is no signer by that.
	writeFile(t, filepath.Join(c.dir, "orders.keys"), "mallory's key")
	c.write(loose, counter3, "mallory's key")
	c.refuses("a stranger who changed the file with the keys", "unknown key")
	writeFile(t, filepath.Join(c.dir, "orders.keys"), "alice's key")

	// What a file names is covered by its signature.
	c.write(loose, counter3, "alice's key")
	writeFile(t, filepath.Join(c.dir, "alice.keys"), "mallory's key")
	c.refuses("another file that is named, under a good signature", "does not cover the files")
	c.write(loose, counter2, "")
	c.refuses("another file that is named", "alice.keys: has other content")
	c.write(loose, counter3, "alice's key")
	c.accepts("signed as it is", Looser, "alice")
}

// The record is of one file in one place.
func TestCompareWithRecord(t *testing.T) {
	t.Parallel()
	c := newCompany(t)
	c.write(operator, counter1, "alice's key")
	c.accepts("the first file", First, "alice")
	if len(c.last.Keys) != 1 || c.last.Keys[filepath.Join(c.dir, "orders.keys")] == nil {
		t.Errorf("the record keeps more than the keys of those who may sign: %d files", len(c.last.Keys))
	}
	l, err := Load(c.path())
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Record){
		"another place":   func(r *Record) { r.Path = "/etc/other/holdfast.yaml" },
		"another content": func(r *Record) { r.File = []byte(strings.Replace(operator, "[shop, ", "[", 1)) },
		"another digest":  func(r *Record) { r.Digest = l.FilesDigest() },
	} {
		last := *c.last
		change(&last)
		if a := l.compare(&last); a.Verdict == Unchanged {
			t.Errorf("%s: unchanged", name)
		}
	}
}

// To be signed by itself does not help a file once a signer is on record.
func TestAdmitUnreadableRecord(t *testing.T) {
	t.Parallel()
	c := newCompany(t)
	c.write(operator, counter1, "alice's key")
	c.accepts("the first file", First, "alice")
	c.last.File = []byte("from: the future\n")
	c.write(operator+"workers: 3\n", counter1, "")
	c.refuses("a file that cannot be compared", "cannot read the file accepted last")
	writeFile(t, filepath.Join(c.dir, recordFile), "{")
	if _, err := ReadRecord(c.dir); fault.KindOf(err) != fault.Denied {
		t.Errorf("a broken record: %v", err)
	}
}

func TestRequireSigned(t *testing.T) {
	t.Parallel()
	c := newCompany(t)
	required, keys := []Signer{{Name: "unit", AllowedSignersFile: "unit.keys"}}, map[string][]byte{"unit.keys": []byte("alice's key")}
	for _, tc := range []struct{ name, signed, key, want string }{
		{"signed", counter1, "alice's key", ""},
		{"signed by another", counter1, "carol's key", "unknown key"},
		{"not signed", counter1, "", "it is not signed"},
		{"without the section", "", "alice's key", "has no section signed:"},
		{"without its files", "signed: {files: \"sha256:" + strings.Repeat("0", 64) + "\", counter: 1, signers: [{name: alice, allowedSignersFile: orders.keys}]}\n", "alice's key", "does not cover the files"},
	} {
		c.write(operator, tc.signed, tc.key)
		l, err := Load(c.path())
		if err != nil {
			t.Fatal(err)
		}
		signer, err := l.RequireSigned(required, keys, checkTest)
		if tc.want == "" && (err != nil || signer != "unit") || tc.want != "" && (fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: signed by %q, %v", tc.name, signer, err)
		}
	}
}

func TestRecord(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if r, err := ReadRecord(dir); r != nil || err != nil {
		t.Fatalf("%+v %v", r, err)
	}
	l, err := load(t, operator)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Record("alice", epoch).Write(dir); err != nil {
		t.Fatal(err)
	}
	r, err := ReadRecord(dir)
	if err != nil || !bytes.Equal(r.File, []byte(operator)) || r.Digest != l.Digest || r.Signer != "alice" {
		t.Errorf("%+v %v", r, err)
	}
	info, err := os.Stat(filepath.Join(dir, recordFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if err := l.Record("alice", epoch).Write(filepath.Join(dir, "none")); err == nil {
		t.Error("written to a folder that there is not")
	}
	blocked := t.TempDir()
	writeFile(t, filepath.Join(blocked, recordFile, "x"), "")
	if _, err := ReadRecord(blocked); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a record that cannot be read: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// The same files in another folder have the same digest: people sign elsewhere.
func TestFilesDigest(t *testing.T) {
	t.Parallel()
	of := func(c *company) string {
		c.write(operator, "", "")
		l, err := Load(c.path())
		if err != nil {
			t.Fatal(err)
		}
		return l.FilesDigest().String()
	}
	a, b := newCompany(t), newCompany(t)
	if of(a) != of(b) {
		t.Error("the digest depends on the folder")
	}
	writeFile(t, filepath.Join(b.dir, "alice.keys"), "mallory's key")
	if of(a) == of(b) {
		t.Error("the digest does not cover a file")
	}
	// What is not below the folder is where it is, wherever people sign.
	outside := map[string]digest.Digest{"/etc/keys": "sha256:1"}
	here, deeper := Loaded{Path: "/a/holdfast.yaml", Named: outside}, Loaded{Path: "/a/b/holdfast.yaml", Named: outside}
	if here.FilesDigest() != deeper.FilesDigest() {
		t.Error("the digest depends on the way to a file outside of the folder")
	}
}
