//go:build linux && (amd64 || arm64)

package box

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// maxMessage bounds one message between the daemon and a box, in bytes: arguments and
	// environment of a program.
	maxMessage = 128 << 10
	maxFDs     = 16
)

// message is what goes over the connection between the daemon and the first process.
type message struct {
	// To the box.
	Run    *program `json:"run,omitempty"`    // with what takes its output, and its errors
	Seal   string   `json:"seal,omitempty"`   // a folder of the work directory becomes read-only
	Signal int      `json:"signal,omitempty"` // for the program that runs

	// From the box.
	Ready    *ready `json:"ready,omitempty"` // with the work directory, and the listeners
	Done     bool   `json:"done,omitempty"`  // what was asked for, but for Run
	Exit     *exit  `json:"exit,omitempty"`
	Err      string `json:"err,omitempty"`
	Lacking  bool   `json:"lacking,omitempty"`  // Err is what the host cannot do
	NotFound bool   `json:"notFound,omitempty"` // Err is of a path that does not exist
}

type program struct {
	Path   string   `json:"path"`
	Args   []string `json:"args"`
	Env    []string `json:"env"`
	Dir    string   `json:"dir"`
	Writes bool     `json:"writes"`
	Grace  int64    `json:"grace"` // nanoseconds
}

// orders are what the first process is told by its command line.
type orders struct {
	Config
	// Apart says that programs have a user of their own, toolUser.
	Apart bool
}

type ready struct {
	Landlock int  `json:"landlock"` // version of the ABI; 0 is none
	Proc     bool `json:"proc"`
}

type exit struct {
	Code   int `json:"code"`
	Signal int `json:"signal"`
}

// conn is one end of the connection: a socket that keeps messages apart.
type conn struct{ f *os.File }

// pair returns both ends.
func pair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "box"), os.NewFile(uintptr(fds[1]), "box"), nil
}

// send sends a message with descriptors, which stay open here.
func (c *conn) send(m message, files ...*os.File) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > maxMessage {
		return fmt.Errorf("arguments and environment have %d bytes, the limit is %d", len(b), maxMessage)
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	return c.do(true, func(fd int) error { return unix.Sendmsg(fd, b, oob, nil, unix.MSG_NOSIGNAL) })
}

// receive returns the next message and its descriptors; io.EOF when the other end is gone.
func (c *conn) receive() (message, []*os.File, error) {
	b, oob := make([]byte, maxMessage+1), make([]byte, unix.CmsgSpace(4*maxFDs))
	var n, oobn, flags int
	err := c.do(false, func(fd int) (err error) {
		n, oobn, flags, _, err = unix.Recvmsg(fd, b, oob, unix.MSG_CMSG_CLOEXEC)
		return err
	})
	if err == nil && n == 0 {
		err = io.EOF
	}
	if errors.Is(err, unix.ECONNRESET) {
		err = io.EOF
	}
	if err != nil {
		return message{}, nil, err
	}
	files, err := received(oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("the message is too long")
	}
	var m message
	if err == nil {
		err = json.Unmarshal(b[:n], &m)
	}
	if err != nil {
		closeAll(files)
		return message{}, nil, err
	}
	return m, files, nil
}

func received(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			closeAll(files)
			return nil, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "box"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nothing was written to it here
	}
}

// do calls f when the socket is ready for it.
func (c *conn) do(write bool, f func(fd int) error) error {
	raw, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	ready := func(fd uintptr) bool {
		for result = f(int(fd)); errors.Is(result, unix.EINTR); result = f(int(fd)) {
		}
		return !errors.Is(result, unix.EAGAIN)
	}
	if write {
		err = raw.Write(ready)
	} else {
		err = raw.Read(ready)
	}
	return errors.Join(err, result)
}
