package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing/fstest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/mask"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets/terraform"
)

// configuration has so many files as resources, below a folder.
const configuration = `terraform {
  required_providers {
    local = {
      source  = "hashicorp/local"
      version = "1.4.0"
    }
  }
}

resource "local_file" "a" {
  count    = %d
  filename = "%s/files/${count.index}"
  content  = "a"
}
`

const runs = 7

// check is what a drift check costs that finds nothing, in milliseconds: bare, in a folder
// that is initialised, and ours, in a sandbox that is made for it.
type check struct {
	Resources int     `json:"resources"`
	Bare      float64 `json:"bare"`
	Ours      float64 `json:"ours"`
}

// terraform measures drift checks of stacks in which nothing has moved.
func (b *bench) terraform(ctx context.Context) error {
	for _, n := range []int{1, 100, 1000} {
		c, err := b.driftCheck(ctx, n)
		if err != nil {
			return err
		}
		b.result.Checks = append(b.result.Checks, c)
	}
	return nil
}

func (b *bench) driftCheck(ctx context.Context, resources int) (c check, err error) {
	c.Resources = resources
	dir, err := os.MkdirTemp(b.world.Dir, "tf-")
	if err != nil {
		return c, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return c, err
	}
	lock, err := b.world.Lock()
	if err != nil {
		return c, err
	}
	files := map[string]string{"main.tf": fmt.Sprintf(configuration, resources, dir), ".terraform.lock.hcl": lock}
	snap := fstest.MapFS{}
	for name, content := range files {
		snap[name] = &fstest.MapFile{Data: []byte(content), Mode: 0o644}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return c, err
		}
	}
	rc := filepath.Join(dir, "rc")
	mirror := fmt.Sprintf("provider_installation {\n  filesystem_mirror {\n    path = %q\n  }\n}\n", b.world.Mirror())
	if err := os.WriteFile(rc, []byte(mirror), 0o600); err != nil {
		return c, err
	}
	env := append(os.Environ(), "TF_CLI_CONFIG_FILE="+rc, "CHECKPOINT_DISABLE=1")
	for _, args := range [][]string{{"init", "-input=false"}, {"apply", "-input=false", "-auto-approve"}} {
		if _, err := timed(ctx, 1, nil, dir, env, b.world.Terraform, args...); err != nil {
			return c, err
		}
	}
	state, err := os.ReadFile(filepath.Join(dir, "terraform.tfstate"))
	if err != nil {
		return c, err
	}
	ours := filepath.Join(dir, "state", "production", "bench")
	if err := os.MkdirAll(ours, 0o700); err != nil {
		return c, err
	}
	if err := os.WriteFile(filepath.Join(ours, "terraform.tfstate"), state, 0o600); err != nil {
		return c, err
	}
	masker, err := mask.New(make([]byte, 32))
	if err != nil {
		return c, err
	}
	target, err := terraform.New(terraform.Config{
		Binary: b.world.Terraform, Mirror: b.world.Mirror(), StateDir: filepath.Join(dir, "state"), Masker: masker, Log: slog.New(slog.DiscardHandler),
		Sandbox: terraform.Sandbox{Read: []string{filepath.Join(dir, "files")}},
	}, terraform.Spec{Stack: "bench", Environment: "production", Dir: "."})
	if err != nil {
		return c, err
	}
	rendered, err := target.Render(ctx, &sources.Snapshot{Revision: sources.Revision{Source: "bench", ID: "1"}, Tree: digest.FromString("1"), FS: snap})
	if err != nil {
		return c, err
	}
	// One after the other, so that both see the same noise.
	var bare, own []float64
	for i := range runs + 1 {
		ms, err := timed(ctx, 1, nil, dir, env, b.world.Terraform, "plan", "-input=false", "-detailed-exitcode", "-json")
		if err != nil {
			return c, err
		}
		start := time.Now()
		p, err := target.Plan(ctx, rendered)
		if err != nil {
			return c, err
		}
		if !p.Empty() {
			return c, errors.New("the plan is not empty")
		}
		if i > 0 { // the first one has init, and hashes what never changes
			bare, own = append(bare, ms), append(own, float64(time.Since(start).Microseconds())/1000)
		}
	}
	c.Bare, c.Ours = percentile(bare, .5), percentile(own, .5)
	return c, nil
}
