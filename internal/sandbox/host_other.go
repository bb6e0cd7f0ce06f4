//go:build !linux || !(amd64 || arm64)

package sandbox

import (
	"context"
	"errors"
	"os"
	"time"
)

// supported says that this system has workers. Where it has none, a Pool runs
// its task in process, and what follows is never called.
const supported = false

func (p *Pool) start(context.Context, string) (*worker, error) { return nil, errors.ErrUnsupported }

func confine(orders) (ready, error) { return ready{}, errors.ErrUnsupported }

func (w *worker) cpu() time.Duration { return 0 }

func endedBySignal(*os.ProcessState) bool { return false }
