package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

const (
	// startTimeout is how long a new worker may take until it is confined.
	startTimeout = 30 * time.Second
	// exitTimeout is how long a worker may take to end once its pipe has.
	exitTimeout = time.Second

	reportHint = "report it, with the files of the stack"
)

// errKilled is in the chain of the error of a worker that a signal ended which
// was not ours: the kernel, short of memory, or a person.
var errKilled = errors.New("killed")

// worker is one process, seen from the parent.
type worker struct {
	domain string
	runs   int
	expiry *time.Timer // while it is idle

	process *os.Process
	in      *os.File // its stdin
	out     *os.File // its stdout
	w       *bufio.Writer
	r       *bufio.Reader
	last    *tail // of its stderr

	gone  chan struct{} // closed when it has ended
	state *os.ProcessState

	mu     sync.Mutex
	reason error // why we killed it; nil: we did not
}

// launch starts cmd with pipes. The goroutine that starts it waits for it on the
// same thread, because the kernel ends the worker when that thread is gone.
func launch(cmd *exec.Cmd, domain string, done func()) (*worker, error) {
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, childOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, childIn.Close(), in.Close())
	}
	w := &worker{domain: domain, in: in, out: out, last: &tail{}, gone: make(chan struct{})}
	w.w, w.r = bufio.NewWriterSize(in, 64<<10), bufio.NewReaderSize(out, 64<<10)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = childIn, childOut, w.last
	cmd.WaitDelay = time.Second
	started := make(chan error, 1)
	go func() {
		defer done()
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		_ = childIn.Close()  // the child's
		_ = childOut.Close() // the child's
		if started <- err; err != nil {
			return
		}
		_ = cmd.Wait() // the state says it better
		w.state = cmd.ProcessState
		close(w.gone)
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(err, in.Close(), out.Close())
	}
	w.process = cmd.Process
	return w, nil
}

func (w *worker) alive() bool {
	select {
	case <-w.gone:
		return false
	default:
		return true
	}
}

// kill ends the process for the given reason, unless it has one already.
func (w *worker) kill(reason error) {
	w.mu.Lock()
	if w.reason == nil {
		w.reason = reason
	}
	w.mu.Unlock()
	_ = w.process.Kill() // it may have ended by itself
}

// end kills the process and waits until nothing is left of it.
func (w *worker) end() {
	w.kill(errEnded)
	<-w.gone
	_ = w.in.Close()  // nothing is buffered
	_ = w.out.Close() // nothing is written
}

var errEnded = errors.New("it is not needed any more")

// died says why the worker's pipe ended. It waits for the process.
func (w *worker) died() error {
	select {
	case <-w.gone:
	case <-time.After(exitTimeout):
		w.kill(fault.New(fault.Internal, op, reportHint, "the rendering process closed its pipes"))
		<-w.gone
	}
	w.mu.Lock()
	reason := w.reason
	w.mu.Unlock()
	if reason != nil {
		return reason
	}
	text := w.last.String()
	switch {
	case strings.Contains(text, "out of memory"):
		return errMemory
	case endedBySignal(w.state):
		return fault.New(fault.Transient, op, "look for the OOM killer in the kernel's log; Holdfast may need more memory", "the rendering process was %w from outside (%s)", errKilled, w.state)
	}
	what := w.state.String()
	// What the runtime says of itself is constant text. All else could be input.
	if first, _, _ := strings.Cut(text, "\n"); strings.HasPrefix(first, "fatal error: ") || strings.HasPrefix(first, "runtime: ") {
		what += ", " + clip(first, maxHint)
	}
	return fault.New(fault.Internal, op, reportHint, "the rendering process crashed: %s", what)
}

var errMemory = errors.New("out of memory")

// await reads the frame with which a new worker says how it is confined.
func (w *worker) await() (ready, error) {
	late := fault.New(fault.Transient, op, "", "the rendering process did not start within %s", startTimeout)
	defer time.AfterFunc(startTimeout, func() { w.kill(late) }).Stop()
	kind, payload, err := readFrame(w.r, bounds{frameReady: maxReady, frameError: maxError})
	var y ready
	switch {
	case err != nil:
		return y, w.judge(w.died(), nil, 0, Limits{})
	case kind == frameError:
		return y, parseFailure(payload)
	}
	if err := json.Unmarshal(payload, &y); err != nil {
		return y, fault.New(fault.Internal, op, "", "the rendering process speaks nonsense when it starts")
	}
	return y, nil
}

// do has the worker do one request, and answers its questions from fsys.
// It reports whether the worker is where it was before, and can do another.
func (w *worker) do(ctx context.Context, l Limits, request []byte, fsys fs.FS) (answer []byte, inTurn bool, err error) {
	if len(request)+1 > maxRequest {
		return nil, true, limit("make the variables shorter", "the stack's paths and variables are larger than %d MiB", maxRequest>>20)
	}
	w.runs++
	begun := w.cpu()
	tooLong := errors.New("too long")
	defer time.AfterFunc(l.Time, func() { w.kill(tooLong) }).Stop()
	defer context.AfterFunc(ctx, func() { w.kill(fault.Wrap(fault.Transient, op, "", ctx.Err())) })()

	files := &server{fsys: fsys}
	kind, payload, err := w.converse(l, request, files)
	var long *tooLongError
	switch {
	case errors.As(err, &long) && long.kind == frameAnswer:
		return nil, false, limit("split the stack", "the rendered stack is larger than %d MiB", l.Answer>>20)
	case errors.As(err, &long), errors.Is(err, errFrame):
		return nil, false, fault.New(fault.Internal, op, reportHint, "the rendering process speaks nonsense: %w", err)
	case err != nil:
		return nil, false, w.judge(w.died(), tooLong, begun, l)
	case kind == frameAnswer:
		return payload, true, nil
	}
	err = parseFailure(payload)
	if files.err != nil && fault.KindOf(err) == fault.Transient {
		err = fault.Wrap(fault.Transient, op, "", files.err) // ours says more, and is true
	}
	return nil, true, err
}

// converse sends the request and answers questions until a result comes.
func (w *worker) converse(l Limits, request []byte, files *server) (frame, []byte, error) {
	links := []byte{0}
	if _, ok := files.fsys.(fs.ReadLinkFS); ok {
		links[0] = 1
	}
	if err := writeFrame(w.w, frameRequest, links, request); err != nil {
		return 0, nil, err
	}
	for {
		kind, payload, err := readFrame(w.r, bounds{frameFile: 2 * maxName, frameAnswer: l.Answer, frameError: maxError})
		if err != nil || kind != frameFile {
			return kind, payload, err
		}
		head, content := files.answer(payload)
		if err := writeFrame(w.w, frameReply, head, content); err != nil {
			return 0, nil, err
		}
	}
}

// judge makes an error for people of why a worker died.
func (w *worker) judge(why, tooLong error, begun time.Duration, l Limits) error {
	switch {
	case errors.Is(why, errMemory):
		return limit("make it smaller: fewer generators, replacements and patches, or several stacks", "rendering needs more than %d MiB of memory", l.Memory>>20)
	case !errors.Is(why, tooLong):
		return why
	}
	// A host without a CPU to spare says nothing about the repository.
	if used := w.state.UserTime() + w.state.SystemTime() - begun; used < l.Time/4 {
		return fault.New(fault.Transient, op, "look at the load of this host", "rendering took longer than %s, of which it had the CPU for %s", l.Time, used.Round(time.Millisecond))
	}
	return limit("make it smaller: fewer generators, replacements and patches, or several stacks", "rendering takes longer than %s", l.Time)
}

func limit(hint, format string, args ...any) error {
	return fault.New(fault.Invalid, op, hint, format, args...)
}

// parseFailure makes an error of what a worker said. Kinds that only the parent
// can know, such as fault.Denied, are not believed.
func parseFailure(payload []byte) error {
	var f failure
	if err := json.Unmarshal(payload, &f); err != nil || f.Text == "" {
		return fault.New(fault.Internal, op, reportHint, "the rendering process speaks nonsense")
	}
	switch f.Kind {
	case fault.Invalid, fault.Transient:
	default:
		f.Kind = fault.Internal
	}
	return fault.New(f.Kind, op, clip(f.Hint, maxHint), "%s", clip(f.Text, maxText))
}

// clip returns at most n bytes of s, without what steers a terminal.
func clip(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && !unicode.IsGraphic(r) {
			return utf8.RuneError
		}
		return r
	}, s)
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// tail keeps the beginning of what a worker says on stderr, which is where Go's
// runtime names the fault, and forgets the rest.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[:min(len(p), max(0, maxText-len(t.b)))]...)
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}

var _ io.Writer = (*tail)(nil)

// environment is all that a worker's holds: no traces, which could show pieces
// of the input, and no control group's files kept open by Go's runtime.
var environment = []string{"GOTRACEBACK=none", "GODEBUG=containermaxprocs=0"}

// command returns the command line of a worker.
func command(self string, o orders) (*exec.Cmd, error) {
	args, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("orders: %w", err)
	}
	cmd := exec.Command(self, argument, string(args))
	cmd.Args[0] = "holdfast"
	cmd.Dir = "/"
	cmd.Env = environment
	return cmd, nil
}
