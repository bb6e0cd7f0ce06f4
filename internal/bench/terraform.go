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

const configuration = `terraform {
  required_providers {
    local = {
      source  = "hashicorp/local"
      version = "1.4.0"
    }
  }
}

resource "local_file" "a" {
  filename = "%s/a"
  content  = "a"
}

resource "terraform_data" "b" {
  input = "b"
}
`

const runs = 7

// terraform measures a bare plan in a folder that is initialised, and
// our check, which makes its folder anew each time and initialises it.
func (b *bench) terraform(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(b.world.Dir, "tf-")
	if err != nil {
		return err
	}
	lock, err := b.world.Lock()
	if err != nil {
		return err
	}
	files := map[string]string{"main.tf": fmt.Sprintf(configuration, dir), ".terraform.lock.hcl": lock}
	snap := fstest.MapFS{}
	for name, content := range files {
		snap[name] = &fstest.MapFile{Data: []byte(content), Mode: 0o644}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	rc := filepath.Join(dir, "rc")
	mirror := fmt.Sprintf("provider_installation {\n  filesystem_mirror {\n    path = %q\n  }\n}\n", b.world.Mirror())
	if err := os.WriteFile(rc, []byte(mirror), 0o600); err != nil {
		return err
	}
	env := append(os.Environ(), "TF_CLI_CONFIG_FILE="+rc, "CHECKPOINT_DISABLE=1")
	if _, err := timed(ctx, 1, nil, dir, env, b.world.Terraform, "init", "-input=false"); err != nil {
		return err
	}
	if b.result.TofuPlan, err = timed(ctx, runs, []int{2}, dir, env, b.world.Terraform, "plan", "-input=false", "-detailed-exitcode"); err != nil {
		return err
	}
	masker, err := mask.New(make([]byte, 32))
	if err != nil {
		return err
	}
	target, err := terraform.New(terraform.Config{
		Binary: b.world.Terraform, Mirror: b.world.Mirror(), StateDir: filepath.Join(dir, "state"), Masker: masker, Log: slog.New(slog.DiscardHandler),
	}, terraform.Spec{Stack: "bench", Environment: "production", Dir: "."})
	if err != nil {
		return err
	}
	rendered, err := target.Render(ctx, &sources.Snapshot{Revision: sources.Revision{Source: "bench", ID: "1"}, Tree: digest.FromString("1"), FS: snap})
	if err != nil {
		return err
	}
	var all []float64
	for range runs {
		start := time.Now()
		p, err := target.Plan(ctx, rendered)
		if err != nil {
			return err
		}
		if p.Empty() {
			return errors.New("the plan is empty, so nothing was measured")
		}
		all = append(all, float64(time.Since(start).Microseconds())/1000)
	}
	b.result.DriftCheck = percentile(all, .5)
	return nil
}
