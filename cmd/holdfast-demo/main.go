// Command holdfast-demo tells the whole story of Holdfast on one machine: it
// owns nothing but the start of package demo. It guarantees exit code 0 only if
// every step happened, and refuses to touch anything outside a temporary folder.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/term"

	"github.com/holdfast-dev/holdfast/internal/demo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "holdfast-demo: error: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	bin := os.Getenv("HOLDFAST_BIN")
	if bin == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		bin = filepath.Join(filepath.Dir(self), "holdfast")
	}
	return demo.Run(ctx, demo.Options{
		Holdfast: bin,
		Out:      os.Stdout,
		Stay:     term.IsTerminal(int(os.Stdout.Fd())) && term.IsTerminal(int(os.Stdin.Fd())),
		Colour:   term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("NO_COLOR") == "",
	})
}
