package main

import (
	"log/slog"

	"github.com/holdfast-dev/holdfast/internal/sandbox"
	"github.com/holdfast-dev/holdfast/targets/kubernetes"
)

// worker makes this process one of those in which stacks are rendered, if
// newRenderer's pool started it as one, and does not return then.
func worker() { sandbox.Main(kubernetes.RenderTask) }

// newRenderer returns what starts workers. A command that does not close it
// takes them with it when it ends.
func newRenderer(log *slog.Logger) (*sandbox.Pool, error) {
	return sandbox.New(sandbox.Config{Task: kubernetes.RenderTask, Log: log})
}
