//go:build linux && (amd64 || arm64)

package sandbox

import (
	"fmt"
	"os"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	landlocksys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

const (
	// maxThreads bounds the threads of a worker.
	maxThreads = 64
	// maxFiles bounds the descriptors: the pipes, and what Go's runtime opens.
	maxFiles = 32
)

// confine gives up everything that rendering does not need, for all threads of
// the process and for good. An error means that the process is not confined
// and MUST end; Landlock alone may be missing, and ready says so.
func confine(o orders) (ready, error) {
	// If memory gets short on the host, a worker goes before the daemon.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0) // a host without it loses nothing
	if err := limitResources(o); err != nil {
		return ready{}, err
	}
	// No core dump, and nobody of the same user attaches to the process.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return ready{}, fmt.Errorf("PR_SET_DUMPABLE: %w", err)
	}
	abi, err := denyFiles()
	if err != nil {
		return ready{}, err
	}
	return ready{Landlock: abi}, filterCalls()
}

// denyFiles has Landlock refuse every file, port and outer process, as far as
// the kernel knows how to. It returns the version of its ABI, 0 where it has none.
func denyFiles() (int, error) {
	abi, err := landlocksys.LandlockGetABIVersion()
	if err != nil || abi <= 0 {
		return 0, nil //nolint:nilerr // a kernel without it, or one that was told not to use it
	}
	if err := landlock.V11.BestEffort().Restrict(); err != nil { // no rule: nothing is allowed
		return 0, fmt.Errorf("landlock: %w", err)
	}
	return abi, nil
}

// limitResources sets limits that the process cannot raise. The one on memory
// counts from what the program's own libraries take before any input is read.
func limitResources(o orders) error {
	taken, err := dataSize()
	if err != nil {
		return err
	}
	limits := map[int]uint64{
		unix.RLIMIT_DATA:   uint64(taken + o.Memory),
		unix.RLIMIT_CPU:    maxCPU,
		unix.RLIMIT_NOFILE: maxFiles,
		unix.RLIMIT_FSIZE:  0,
		unix.RLIMIT_CORE:   0,
	}
	if o.Alone {
		limits[unix.RLIMIT_NPROC] = maxThreads
	}
	for which, n := range limits {
		if err := unix.Setrlimit(which, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return fmt.Errorf("resource limit %d: %w", which, err)
		}
	}
	return nil
}

// dataSize returns what the kernel counts against RLIMIT_DATA, in bytes.
func dataSize() (int64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("size of the process: %w", err)
	}
	_, rest, _ := strings.Cut(string(b), "\nVmData:")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		return 0, fmt.Errorf("size of the process: %w", err)
	}
	return kib << 10, nil
}
