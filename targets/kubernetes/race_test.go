//go:build race

package kubernetes

// raceDetector says that it watches: it takes several times the memory.
const raceDetector = true
