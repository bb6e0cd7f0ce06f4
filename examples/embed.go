// Package examples owns the runnable examples, as the demo and the end-to-end
// tests use them. It guarantees that they are the very files that a reader
// sees here, and refuses to be anything but files.
package examples

import "embed"

// FS holds the example repository, shop, and the operator's file.
//
//go:embed all:shop holdfast.yaml
var FS embed.FS
