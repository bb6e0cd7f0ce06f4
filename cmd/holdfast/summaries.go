package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/durable"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/registry"
	"github.com/holdfast-dev/holdfast/verify/summary"
)

// defaultSummaryAge is how long a summary is good for where the operator does not say.
const defaultSummaryAge = 24 * time.Hour

// newSummaries wires what makes verdicts known to others; nil where that is not asked
// for.
func newSummaries(cfg *config.Loaded, sec *secrets, revoked *verify.Revocations, log *slog.Logger) (*summary.Publisher, error) {
	c := cfg.Trust.Summaries
	if c == nil {
		return nil, nil //nolint:nilnil // nobody is told
	}
	conf := summary.Config{
		Verifier: c.Verifier, Version: version, TimestampURL: c.TimestampURL, Repositories: c.Repositories,
		Policy: cfg.Digest, Every: c.Every.Or(defaultSummaryAge), Revoked: revoked.Check,
	}
	key, err := sec.read(c.KeyFile)
	if err != nil {
		return nil, err
	}
	conf.Key = []byte(key)
	if c.PasswordFile != "" {
		conf.Password = func() ([]byte, error) {
			p, err := sec.read(c.PasswordFile)
			return []byte(p), err
		}
	}
	file := filepath.Join(cfg.StateDir, "summaries.json")
	if conf.Known, err = readKnown(file); err != nil {
		return nil, err
	}
	conf.Save = func(known map[string]time.Time) error {
		b, err := json.Marshal(known)
		if err == nil {
			err = durable.Replace(file, b)
		}
		return fault.Wrap(fault.Transient, "holdfast.summaries", "look at the state directory: disk full, read-only or lost?", err)
	}
	client, err := pushingClient(cfg, sec)
	if err != nil {
		return nil, err
	}
	return summary.New(conf, client, log)
}

// readKnown reads which summaries are attached. A file that cannot be read is as good
// as none: they are attached once more.
func readKnown(file string) (map[string]time.Time, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("summaries: %w", err)
	}
	var known map[string]time.Time
	if json.Unmarshal(b, &known) != nil {
		return nil, nil
	}
	return known, nil
}

// pushingClient is a client with the accounts that may push.
func pushingClient(cfg *config.Loaded, sec *secrets) (*registry.Client, error) {
	list := slices.Clone(cfg.Trust.Summaries.Registries)
	for _, r := range cfg.Registries {
		if !slices.ContainsFunc(list, func(o config.Registry) bool { return strings.EqualFold(o.Host, r.Host) }) {
			list = append(list, r)
		}
	}
	return newRegistryClient(list, sec)
}

// verified makes known what was verified in an environment.
func (a *app) verified(ctx context.Context, environment string, report verify.Report) {
	if a.summaries != nil {
		a.summaries.Verified(ctx, environment, report)
	}
}
