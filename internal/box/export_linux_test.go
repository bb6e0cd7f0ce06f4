//go:build linux && (amd64 || arm64)

package box

// Abandon closes the connection as the death of the daemon does, and waits until the box
// has ended.
func (b *Box) Abandon() {
	_ = b.conn.f.Close()
	<-b.ended
}
