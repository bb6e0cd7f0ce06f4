package sandbox

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A frame is one byte that says what it is, four bytes of length (big-endian),
// and the payload.
type frame byte

// From the parent to the worker.
const (
	frameRequest frame = 'R' // what to do
	frameReply   frame = 'F' // the answer to a frameFile
)

// From the worker to the parent.
const (
	frameReady  frame = 'Y' // it is confined, and how
	frameFile   frame = 'O' // a question about a file
	frameAnswer frame = 'A' // the result
	frameError  frame = 'E' // why there is none
)

const headerSize = 5

// bounds is the longest payload, in bytes, of each frame that may come next.
type bounds map[frame]int64

var (
	errFrame = errors.New("a frame that cannot come here")
	errShort = errors.New("the stream ended inside a frame")
)

// tooLongError is a frame that is longer than its bound.
type tooLongError struct {
	kind   frame
	length int64
}

func (e *tooLongError) Error() string {
	return fmt.Sprintf("a frame %q of %d bytes", byte(e.kind), e.length)
}

// writeFrame writes one frame and flushes it.
func writeFrame(w *bufio.Writer, kind frame, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	header := [headerSize]byte{byte(kind)}
	binary.BigEndian.PutUint32(header[1:], uint32(n))
	if _, err := w.Write(header[:]); err != nil {
		return err
	}
	for _, p := range parts {
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return w.Flush()
}

// readFrame reads one frame. It refuses what within does not list, and takes
// memory for the bytes that are there, not for those that the header promises.
// The end of the stream before a frame is io.EOF.
func readFrame(r io.Reader, within bounds) (frame, []byte, error) {
	var header [headerSize]byte
	switch _, err := io.ReadFull(r, header[:]); {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return 0, nil, errShort
	case err != nil:
		return 0, nil, err
	}
	kind, n := frame(header[0]), int64(binary.BigEndian.Uint32(header[1:]))
	limit, known := within[kind]
	if !known {
		return 0, nil, fmt.Errorf("%w: %q", errFrame, byte(kind))
	}
	if n > limit {
		return 0, nil, &tooLongError{kind, n}
	}
	var b bytes.Buffer
	b.Grow(int(min(n, 64<<10)))
	if _, err := io.CopyN(&b, r, n); errors.Is(err, io.EOF) {
		return 0, nil, errShort
	} else if err != nil {
		return 0, nil, err
	}
	return kind, b.Bytes(), nil
}
