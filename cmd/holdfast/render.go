package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-dev/holdfast/drift"
	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/mask"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/kubernetes"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/verify"
)

type renderFlags struct {
	config, repository, output string
	variables                  map[string]string
	pin                        bool
}

func newRender() *cobra.Command {
	var f renderFlags
	c := &cobra.Command{
		Use: "render DIR", Short: "Print the objects of a stack as they would be applied", Args: cobra.ExactArgs(1),
		Long: `Render the stack whose stack.yaml is in DIR and print its objects as YAML, in a
stable order. Tags are resolved to digests at the registry; --pin=false leaves
them and needs no network. Secret values are masked.

With -c, variables, registries and permissions are those of the operator's file;
without it, variables come from --var and everything is allowed.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			docs, err := f.render(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if f.output == "json" {
				return printJSON(cmd.OutOrStdout(), docs)
			}
			for _, d := range docs {
				b, err := yaml.Marshal(d.Value)
				if err != nil {
					return fmt.Errorf("%s: %w", d.Name, err)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "---\n# %s:%d\n%s", d.Name, d.Line, b)
			}
			return nil
		},
	}
	c.Flags().StringVarP(&f.config, "config", "c", "", "operator's file")
	c.Flags().StringVar(&f.repository, "repository", "", "which repository of the operator's file DIR is in; needed where there are several")
	c.Flags().StringToStringVar(&f.variables, "var", nil, "variables, NAME=VALUE; without -c")
	c.Flags().BoolVar(&f.pin, "pin", true, "resolve tags to digests")
	outputFlag(c, &f.output)
	return c
}

func (f *renderFlags) render(ctx context.Context, dir string) ([]plan.Document, error) {
	rendered, _, err := f.rendered(ctx, dir)
	return rendered.Documents, err
}

// rendered returns the rendering of the stack in dir, and its environment.
func (f *renderFlags) rendered(ctx context.Context, dir string) (targets.Rendered, string, error) {
	root, rel, err := repositoryOf(dir)
	if err != nil {
		return targets.Rendered{}, "", err
	}
	snap, err := workingTree(root, "working-tree")
	if err != nil {
		return targets.Rendered{}, "", err
	}
	cfg := &config.Loaded{}
	if f.config != "" {
		if len(f.variables) > 0 {
			return targets.Rendered{}, "", usageError{errors.New("--var is for rendering without -c")}
		}
		if cfg, err = config.Load(f.config); err != nil {
			return targets.Rendered{}, "", err
		}
	}
	target, env, err := f.target(ctx, cfg, snap, rel)
	if err != nil {
		return targets.Rendered{}, "", err
	}
	rendered, err := target.Render(ctx, snap)
	if err != nil {
		return targets.Rendered{}, "", err
	}
	if p, ok := target.(targets.Pinner); ok && f.pin {
		rendered, err = resolve(ctx, cfg, p, rendered)
	}
	return rendered, env, err
}

// target makes the stack's target: as the operator grants it, or with
// everything allowed. It returns the stack's environment too.
func (f *renderFlags) target(ctx context.Context, cfg *config.Loaded, snap *sources.Snapshot, dir string) (targets.Target, string, error) {
	file := path.Join(dir, config.StackFile)
	if f.config != "" {
		d, err := offline(ctx, cfg, f.repository, anywhere)
		if err != nil {
			return nil, "", err
		}
		s := d.build(dir, d.parse(snap.FS, file))
		if s.Err != nil {
			return nil, "", s.Err
		}
		t, err := s.Build()
		return t, s.Environment, err
	}
	b, err := fs.ReadFile(snap.FS, file)
	if err != nil {
		return nil, "", fault.New(fault.Invalid, "holdfast.render", "name the folder of a stack.yaml", "%w", err)
	}
	s, err := config.ParseStack(file, b)
	if err != nil {
		return nil, "", err
	}
	if s.Spec.Kubernetes == nil {
		return nil, "", fault.New(fault.Invalid, "holdfast.render", "give the operator's file with -c: it says which tool runs", "a Terraform stack cannot be rendered without an environment")
	}
	masker, err := mask.New(make([]byte, 32)) // compared with nothing
	if err != nil {
		return nil, "", err
	}
	log := slog.New(slog.DiscardHandler)
	renderer, err := newRenderer(log)
	if err != nil {
		return nil, "", err
	}
	ts := &targetSet{log: log, clusters: map[string]*kubernetes.Cluster{}}
	// Rendering makes no request, so there is nothing to connect to.
	ts.clusters[s.Spec.Environment], err = kubernetes.NewCluster(kubernetes.ClusterConfig{
		REST: &rest.Config{Host: "https://127.0.0.1:1"}, Key: make([]byte, 32), Masker: masker, Lease: kubernetes.LeaseConfig{Off: true}, Renderer: renderer,
	})
	if err != nil {
		return nil, "", err
	}
	t, err := ts.kubernetes(dir, s, config.Permission{
		Environment: &config.Environment{Name: s.Spec.Environment, Variables: f.variables},
		Namespaces:  []string{"*"}, Kinds: []string{"*"},
	}, drift.Rules{})
	return t, s.Spec.Environment, err
}

// resolve pins every tag. It verifies nothing: that is what plan is for.
func resolve(ctx context.Context, cfg *config.Loaded, p targets.Pinner, r targets.Rendered) (targets.Rendered, error) {
	client, err := newRegistryClient(cfg.Registries, &secrets{})
	if err != nil {
		return r, err
	}
	pins := map[string]verify.Subject{}
	for _, a := range r.Artifacts {
		if pins[a.Reference], err = client.Resolve(ctx, a); err != nil {
			return r, err
		}
	}
	return p.Pin(r, pins)
}

// repositoryOf returns the top of the working tree that dir is in, which is the
// folder itself outside a clone, and dir within it.
func repositoryOf(dir string) (root, rel string, err error) {
	full, err := filepath.Abs(dir)
	if err != nil {
		return "", "", err
	}
	if full, err = filepath.EvalSymlinks(full); err != nil {
		return "", "", fault.New(fault.Invalid, "holdfast.render", "name the folder of a stack.yaml", "%w", err)
	}
	for at := full; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, ".git")); err == nil {
			rel, err := filepath.Rel(at, full)
			return at, filepath.ToSlash(rel), err
		}
		if at == filepath.Dir(at) || strings.HasSuffix(at, string(filepath.Separator)) {
			return full, ".", nil
		}
	}
}
