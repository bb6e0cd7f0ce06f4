package main

import (
	"context"
	"net"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/forge"
)

// hooks adds the listener by which forges say that something was pushed, if a
// repository has a webhook.
func (a *app) hooks(ctx context.Context, add func(string, func(context.Context) error)) error {
	var hooks []forge.Hook
	for _, r := range a.cfg.Repositories {
		if w := r.Webhook; w != nil {
			hooks = append(hooks, forge.Hook{Repository: r.Name, Provider: forge.Provider(w.Provider), Secret: func() ([]byte, error) {
				s, err := a.secrets.read(w.SecretFile)
				return []byte(s), err
			}})
		}
	}
	if len(hooks) == 0 {
		return nil
	}
	h, err := forge.New(forge.Config{Hooks: hooks, Poke: a.reconciler.Poke, Log: a.log, Metrics: a.registry})
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", a.cfg.Listen.Hooks)
	if err != nil {
		return fault.New(fault.Invalid, "holdfast", "set listen.hooks to a free address", "listen: %w", err)
	}
	add("hooks", func(ctx context.Context) error { return h.Serve(ctx, l) })
	return nil
}
