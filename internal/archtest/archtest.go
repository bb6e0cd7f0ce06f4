// Package archtest owns the test that the import graph is the one that
// docs/ARCHITECTURE.md describes, and that every package says what it is. It
// guarantees nothing at run time and refuses to be imported.
package archtest
