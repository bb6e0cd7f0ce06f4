package demo

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// step does one thing and says what came of it.
type step func(context.Context) error

const (
	green = "\x1b[32m"
	bold  = "\x1b[1m"
	faint = "\x1b[2m"
	plain = "\x1b[0m"
)

func (s *story) paint(colour, text string) string {
	if !s.Colour {
		return text
	}
	return colour + text + plain
}

func (s *story) say(format string, args ...any) { fmt.Fprintf(s.Out, format+"\n", args...) }

func (s *story) chapter(title string) { s.say("\n%s", s.paint(bold, title)) }

// step returns a step that prints its title, the time it took, and the detail
// that do returns.
func (s *story) step(title string, do func(context.Context) (string, error)) step {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, stepTimeout)
		defer cancel()
		start := time.Now()
		detail, err := do(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", title, err)
		}
		s.say("  %s %s %s", s.paint(green, "✓"), title, s.paint(faint, fmt.Sprintf("(%.1f s)", time.Since(start).Seconds())))
		for line := range strings.Lines(detail) {
			s.say("      %s", s.paint(faint, clip(strings.TrimRight(line, "\n"))))
		}
		return nil
	}
}

func (s *story) steps(ctx context.Context, steps ...step) error {
	for _, st := range steps {
		if err := st(ctx); err != nil {
			return err
		}
	}
	return nil
}

func clip(line string) string {
	const most = 400
	if r := []rune(line); len(r) > most {
		return string(r[:most]) + "…"
	}
	return line
}
