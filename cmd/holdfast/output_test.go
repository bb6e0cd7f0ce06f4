package main

import (
	"bytes"
	"fmt"
	"testing"
)

// What a repository names is shown, and does nothing to the terminal.
func TestPrintable(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	fmt.Fprint(printing{&b}, "a\x1b[2Jb\u202ec\tü\n\x07")
	if got, want := b.String(), "a�[2Jb�c\tü\n�"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
