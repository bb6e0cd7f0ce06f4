package main

import (
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/internal/config"
)

func TestEvidenceGrace(t *testing.T) {
	t.Parallel()
	cfg := &config.Loaded{}
	cfg.Environments = []config.Environment{
		{Name: "production"}, {Name: "test", EvidenceGrace: config.Duration(time.Minute)}, {Name: "impatient", EvidenceGrace: 1},
	}
	grace := evidenceGrace(cfg)
	for env, want := range map[string]time.Duration{"production": 10 * time.Minute, "test": time.Minute, "impatient": 1, "unknown": 10 * time.Minute} {
		if got := grace(env); got != want {
			t.Errorf("%s waits %s, want %s", env, got, want)
		}
	}
}
