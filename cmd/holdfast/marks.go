package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/reconciler"
	"github.com/holdfast-dev/holdfast/targets/kubernetes"
)

// clusterMarks keeps the marks of repositories in the clusters that are
// deployed to.
type clusterMarks struct {
	clusters map[string]*kubernetes.Cluster // by environment
	ledger   *ledger.Ledger
}

// Environments implements [reconciler.Marks].
func (m clusterMarks) Environments() []string { return slices.Sorted(maps.Keys(m.clusters)) }

// Read implements [reconciler.Marks].
func (m clusterMarks) Read(ctx context.Context, environment, repository string) (reconciler.Mark, bool, error) {
	mark, ok, _, err := m.clusters[environment].ReadMark(ctx, repository) // who wrote it does not matter: it only makes stricter
	return reconciler.Mark{Repository: repository, Commit: mark.Commit, Seen: mark.Seen, Checkpoint: []byte(mark.Checkpoint)}, ok, err
}

// Write implements [reconciler.Marks].
func (m clusterMarks) Write(ctx context.Context, environment string, mark reconciler.Mark, over bool) error {
	c := m.clusters[environment]
	size, err := checkpointSize(mark.Checkpoint)
	if err != nil {
		return err
	}
	if over {
		// Before the mark: it is what tells that the key was lost.
		if _, err := c.AcceptInventories(ctx, environment, mark.Repository); err != nil {
			return err
		}
	}
	return c.WriteMark(ctx, kubernetes.Mark{
		Repository: mark.Repository, Commit: mark.Commit, Seen: mark.Seen,
		Origin: m.ledger.Origin(), Size: size, Checkpoint: string(mark.Checkpoint),
	}, over)
}

// checkpointSize reads the number of entries from a checkpoint: its second line
// (C2SP tlog-checkpoint).
func checkpointSize(checkpoint []byte) (uint64, error) {
	lines := strings.SplitN(string(checkpoint), "\n", 3)
	if len(lines) < 3 {
		return 0, fmt.Errorf("the ledger's checkpoint has %d lines", len(lines))
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the ledger's checkpoint: %w", err)
	}
	return size, nil
}
