package fsck

// LeafHash and Root let the tests build logs that the writer would refuse to.
func LeafHash(leaf []byte) [hashSize]byte { return leafHash(leaf) }

// Root returns the root over leaves.
func Root(leaves []string) [hashSize]byte {
	var e edge
	for _, l := range leaves {
		e.add(leafHash([]byte(l)))
	}
	return e.root()
}
