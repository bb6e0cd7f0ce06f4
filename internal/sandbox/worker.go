package sandbox

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

const (
	// argument is what a worker's command line says; orders follow it.
	argument = "render-worker"
	// maxRequest bounds one request, in bytes: paths and variables.
	maxRequest = 8 << 20
	maxReady   = 4 << 10
	maxError   = 64 << 10
	// maxText and maxHint bound what of an error reaches a person, in bytes.
	maxText = 4 << 10
	maxHint = 512
	// restAfter is how long a worker waits for more work before it gives memory back.
	restAfter = time.Second
)

// orders are what a worker has to know before it can read.
type orders struct {
	Memory int64 `json:"memory"` // bytes
	// Alone says that the process is in namespaces of its own, so that a limit
	// on the processes of its user counts its own only.
	Alone bool `json:"alone"`
}

// ready is the payload of frameReady.
type ready struct {
	Landlock int `json:"landlock"` // version of the ABI; 0 is none
}

// failure is the payload of frameError.
type failure struct {
	Kind fault.Kind `json:"kind"`
	Hint string     `json:"hint,omitempty"`
	Text string     `json:"text"`
}

// Main makes this process a worker if a [Pool] started it as one, and does not
// return then. It is the first thing that main, or TestMain, calls.
func Main(task Task) {
	if !supported || len(os.Args) != 3 || os.Args[1] != argument {
		return
	}
	if err := work(task, os.Args[2], os.Stdin, os.Stdout); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// work confines the process and then does what it is asked to, until the parent
// closes the pipe.
func work(task Task, args string, in io.Reader, out io.Writer) error {
	r, w := bufio.NewReaderSize(in, 64<<10), bufio.NewWriterSize(out, 64<<10)
	var o orders
	err := json.Unmarshal([]byte(args), &o)
	var y ready
	if err == nil {
		runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
		debug.SetMemoryLimit(o.Memory * 3 / 4)
		debug.SetMaxStack(32 << 20)
		y, err = confine(o)
	}
	if err != nil {
		return errors.Join(err, writeError(w, fault.New(fault.Internal, op, "run Holdfast on a kernel, and in a container, that allows seccomp filters", "confine the rendering process: %w", err)))
	}
	payload, err := json.Marshal(y)
	if err != nil {
		return err
	}
	if err := writeFrame(w, frameReady, payload); err != nil {
		return err
	}
	rest := time.AfterFunc(restAfter, debug.FreeOSMemory)
	for {
		_, request, err := readFrame(r, bounds{frameRequest: maxRequest})
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		rest.Stop()
		if err := serve(task, request, r, w); err != nil {
			return err
		}
		rest.Reset(restAfter)
	}
}

// serve does one request. Its first byte says whether the parent's file system
// knows symbolic links.
func serve(task Task, request []byte, r *bufio.Reader, w *bufio.Writer) error {
	if len(request) == 0 {
		return errShort
	}
	remote := &files{in: r, out: w, known: map[question]*reply{}}
	var fsys fs.FS = remote
	if request[0] == 1 {
		fsys = linkFiles{remote}
	}
	answer, err := guarded(task, request[1:], fsys)
	switch {
	case remote.lost != nil:
		return remote.lost
	case err != nil:
		return writeError(w, err)
	}
	return writeFrame(w, frameAnswer, answer)
}

func writeError(w *bufio.Writer, err error) error {
	f := failure{Kind: fault.KindOf(err), Hint: clip(fault.HintOf(err), maxHint), Text: clip(err.Error(), maxText)}
	payload, jsonErr := json.Marshal(f)
	if jsonErr != nil {
		return fmt.Errorf("%w, of %w", jsonErr, err)
	}
	return writeFrame(w, frameError, payload)
}
