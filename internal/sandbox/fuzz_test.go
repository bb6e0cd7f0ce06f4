package sandbox

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io/fs"
	"testing"
	"testing/fstest"
	"unicode/utf8"
)

// FuzzReadFrame: what is read is within bounds, and is what was written.
func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("A\x00\x00\x00\x02hi"))
	f.Add([]byte("A\xff\xff\xff\xff"))
	f.Add([]byte("E\x00\x00\x00\x01"))
	within := bounds{frameAnswer: 1 << 10, frameError: 8}
	f.Fuzz(func(t *testing.T, stream []byte) {
		kind, payload, err := readFrame(bytes.NewReader(stream), within)
		if err != nil {
			return
		}
		if limit, ok := within[kind]; !ok || int64(len(payload)) > limit {
			t.Fatalf("a frame %q of %d bytes", byte(kind), len(payload))
		}
		var out bytes.Buffer
		if err := writeFrame(bufio.NewWriter(&out), kind, payload); err != nil || !bytes.HasPrefix(stream, out.Bytes()) {
			t.Errorf("%q is written as %q, %v", stream, out.Bytes(), err)
		}
	})
}

// FuzzServer: whatever a worker asks for, it gets an answer that the other side
// can read, about a path of the file system.
func FuzzServer(f *testing.F) {
	f.Add([]byte(`{"op":"read","name":"dir/file"}`))
	f.Add([]byte(`{"op":"stat","name":"../../etc/passwd"}`))
	f.Add([]byte(`{"op":"readdir","name":"."}`))
	f.Add([]byte(`{"op":"readlink","name":"link"}`))
	f.Add([]byte(`{"op":"lstat","name":"/"}`))
	files := fstest.MapFS{"dir/file": {Data: []byte("a\nb\n")}, "link": {Data: []byte("dir"), Mode: fs.ModeSymlink}}
	f.Fuzz(func(t *testing.T, payload []byte) {
		s := &server{fsys: files}
		head, content := s.answer(payload)
		r, err := parseReply(append(head, content...))
		if err != nil {
			t.Fatalf("%q: %v in %q", payload, err, head)
		}
		if len(r.content) > 0 && string(r.content) != "a\nb\n" && string(r.content) != "dir" {
			t.Errorf("%q gives %q", payload, r.content)
		}
	})
}

// FuzzParseReply: no answer of the parent makes a file system panic.
func FuzzParseReply(f *testing.F) {
	f.Add([]byte("{\"info\":{\"n\":\"a\",\"s\":1},\"read\":true}\nx"))
	f.Add([]byte("{\"missing\":true}\n"))
	f.Add([]byte("{\"entries\":[{\"n\":\"a\"}]}\n"))
	f.Fuzz(func(_ *testing.T, payload []byte) {
		r, err := parseReply(payload)
		if err != nil {
			return
		}
		for _, o := range []operation{opStat, opLstat, opReadDir, opReadLink, opRead} {
			all := linkFiles{&files{known: map[question]*reply{{o, "a"}: r}, lost: errShort}}
			_, _ = fs.Stat(all, "a")
			_, _ = all.Lstat("a")
			_, _ = all.ReadLink("a")
			_, _ = fs.ReadDir(all, "a")
			_, _ = fs.ReadFile(all, "a")
		}
	})
}

// FuzzParseFailure: an error of a worker is of a kind that it may have, and fit
// for a terminal.
func FuzzParseFailure(f *testing.F) {
	f.Add([]byte(`{"kind":3,"text":"denied","hint":"x"}`))
	f.Add([]byte(`{"kind":4,"text":"\u001b[31m"}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		err := parseFailure(payload)
		if s := err.Error(); !utf8.ValidString(s) || len(s) > maxText+10 || bytes.ContainsAny([]byte(s), "\x00\x1b\r\x7f") {
			t.Errorf("%q gives %q", payload, s)
		}
		if b, jsonErr := json.Marshal(err.Error()); jsonErr != nil || len(b) == 0 {
			t.Error(jsonErr)
		}
	})
}
