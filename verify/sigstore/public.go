package sigstore

import _ "embed" // the trusted root

// PublicGood is the trusted_root.json of the public Sigstore (root-signing,
// Apache-2.0), for commands that are given none. The daemon uses what the
// operator's file names, and nothing else.
//
//go:embed roots/public_good.json
var PublicGood []byte
