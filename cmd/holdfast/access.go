package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/kubernetes"
)

// checkReport is what "check -o json" prints.
type checkReport struct {
	Config string        `json:"config"`
	Digest digest.Digest `json:"digest"`
	Stacks []checked     `json:"stacks"`
	// Grants are the roles that are missing, by environment, as YAML.
	Grants map[string]string `json:"grants,omitempty"`
}

// accessor is a target whose rights can be asked for.
type accessor interface {
	Access(ctx context.Context, r targets.Rendered) ([]kubernetes.Right, error)
}

// stackAccess asks which rights a rendering needs. That some are missing is an
// error beside them.
func stackAccess(ctx context.Context, t targets.Target, r targets.Rendered) ([]kubernetes.Right, error) {
	a, ok := t.(accessor)
	if !ok {
		return nil, nil
	}
	rights, err := a.Access(ctx, r)
	if err != nil {
		return nil, err
	}
	if lacks(rights) {
		err = fault.New(fault.Invalid, "holdfast.check", "have an administrator of the cluster apply the roles that check prints", "the account lacks rights in the cluster")
	}
	return rights, err
}

func lacks(rights []kubernetes.Right) bool {
	return slices.ContainsFunc(rights, func(r kubernetes.Right) bool { return len(r.Missing) > 0 })
}

// missingRoles returns, for each environment that lacks a right, the roles for
// all of its stacks.
func missingRoles(ctx context.Context, clusters map[string]*kubernetes.Cluster, found []checked) (map[string]string, error) {
	rights, lacking := map[string][]kubernetes.Right{}, map[string]bool{}
	for _, c := range found {
		rights[c.Environment] = append(rights[c.Environment], c.Access...)
		lacking[c.Environment] = lacking[c.Environment] || lacks(c.Access)
	}
	grants := map[string]string{}
	for environment, all := range rights {
		if !lacking[environment] {
			continue
		}
		account, err := clusters[environment].Account(ctx)
		if err != nil {
			return nil, err
		}
		grants[environment] = string(kubernetes.GrantManifest(account, all))
	}
	return grants, nil
}

// printAccess prints the rights that are missing, stack by stack, and the roles
// that would grant them.
func printAccess(w io.Writer, found []checked, grants map[string]string) error {
	if len(grants) == 0 {
		return nil
	}
	rows := [][]string{{"STACK", "NAMESPACE", "RESOURCE", "MISSING"}}
	for _, c := range found {
		for _, r := range c.Access {
			if len(r.Missing) > 0 {
				name := strings.TrimSuffix(r.Resource+"."+r.Group, ".")
				rows = append(rows, []string{c.Stack, dash(r.Namespace), name, strings.Join(r.Missing, " ")})
			}
		}
	}
	fmt.Fprintln(w)
	if err := table(w, rows...); err != nil {
		return err
	}
	for _, environment := range slices.Sorted(maps.Keys(grants)) {
		fmt.Fprintf(w, "\n# environment %s\n%s", environment, grants[environment])
	}
	return nil
}
