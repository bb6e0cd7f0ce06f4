package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

func TestMain(m *testing.M) {
	Main(hostile)
	goleak.VerifyTestMain(m)
}

// hostile is a task that does what its request says: the worst that content of a
// repository could have rendering do.
func hostile(request []byte, fsys fs.FS) ([]byte, error) {
	verb, arg, _ := strings.Cut(string(request), " ")
	switch verb {
	case "echo":
		return []byte(arg), nil
	case "pid":
		return []byte(fmt.Sprint(os.Getpid())), nil
	case "try":
		return json.Marshal(tryAll(arg))
	case "read":
		b, err := fs.ReadFile(fsys, arg)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.Invalid, "test", "correct it", "%s is missing", arg)
		}
		return b, fault.Wrap(fault.Transient, "test", "", err)
	case "walk":
		var out bytes.Buffer
		err := fs.WalkDir(fsys, arg, func(name string, d fs.DirEntry, err error) error {
			fmt.Fprintln(&out, name, d != nil && d.IsDir())
			return err
		})
		return out.Bytes(), err
	case "ask": // and die if the answer is no
		if _, err := fs.Stat(fsys, "alive"); err != nil {
			_ = syscall.Tgkill(os.Getpid(), syscall.Gettid(), syscall.SIGKILL)
		}
		return []byte(arg), nil
	case "spin":
		for begun := time.Now(); time.Since(begun) < time.Hour; {
		}
	case "sleep":
		time.Sleep(time.Hour)
	case "eat":
		var all [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = byte(len(all))
			}
			all = append(all, b)
		}
	case "flood":
		return make([]byte, 64<<20), nil
	case "panic":
		var m map[string]int
		m[arg] = 1 //nolint:staticcheck // the panic is what is tested
	case "panic-secret":
		panic("the value is " + arg)
	case "die":
		go func() { panic("a goroutine of the task: " + arg) }()
		select {}
	case "deep":
		return []byte(fmt.Sprint(deeper(0))), nil
	case "babble":
		fmt.Print("A\xff\xff\xff\xffthis is not a frame")
		time.Sleep(time.Hour)
	case "unknown":
		fmt.Print("Z\x00\x00\x00\x00")
		time.Sleep(time.Hour)
	case "close":
		os.Stdout.Close()
		time.Sleep(time.Hour)
	case "denied":
		return nil, fault.New(fault.Denied, "test", "\x1b[31mpaint\x1b[0m it", "no\x00 %s", strings.Repeat("x", 2*maxText))
	}
	return nil, fmt.Errorf("unknown request %q", verb)
}

func deeper(n int) int {
	var pad [1024]byte
	pad[n%1024] = 1
	return deeper(n+1) + int(pad[0]) //nolint:staticcheck // the overflow is what is tested
}
