package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	memoryEvery = 10 * time.Second
	// quietAllocs is what a daemon with nothing to do allocates in memoryEvery at most, in bytes.
	quietAllocs = 4 << 20
	// smallHeap is up to how much live memory garbage may take twice as much: a daemon
	// that starts makes much of it, and collecting it was a sixth of its work.
	smallHeap = 64 << 20
	// slack is how much memory there must be to give back.
	slack = 16 << 20
)

// keepMemory trades memory for time while there is work, and gives it back afterwards.
// Whoever sets GOGC decides for himself.
func keepMemory(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		<-ctx.Done()
		return nil
	}
	defer debug.SetGCPercent(debug.SetGCPercent(200))
	tick := time.NewTicker(memoryEvery)
	defer tick.Stop()
	samples := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/unused:bytes"},
	}
	read := func() (allocs, live, held uint64) {
		metrics.Read(samples)
		return samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64() + samples[3].Value.Uint64() + samples[4].Value.Uint64()
	}
	var before, kept uint64 // kept is what was left when memory was given back last
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		allocs, live, held := read()
		percent := 100
		if live < smallHeap {
			percent = 200
		}
		debug.SetGCPercent(percent)
		if allocs-before < quietAllocs && held > max(live, kept)+slack {
			debug.FreeOSMemory()
			_, _, kept = read()
		}
		before = allocs
	}
}
