package config

import (
	"io/fs"
	"os"
	"path"
	"testing"
	"time"
)

// The example operator's file must be valid, and grant what the example
// repository asks for.
func TestExamples(t *testing.T) {
	t.Parallel()
	l, err := Load("../../examples/holdfast.yaml")
	if err != nil {
		t.Fatal(err)
	}
	shop := os.DirFS("../../examples/shop")
	files, err := fs.Glob(shop, "*/*/"+StackFile)
	if err != nil || len(files) != 3 {
		t.Fatalf("%v %v", files, err)
	}
	for _, f := range files {
		b, err := fs.ReadFile(shop, f)
		if err != nil {
			t.Fatal(err)
		}
		s, err := ParseStack(f, b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Permit("shop", path.Dir(f), s, time.Now()); err != nil {
			t.Error(err)
		}
	}
}
