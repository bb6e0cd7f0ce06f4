//go:build !race

package kubernetes

const raceDetector = false
