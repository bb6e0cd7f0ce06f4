package main

import (
	"fmt"
	"io"

	"github.com/open-policy-agent/conftest/output"
	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/policy/library"
	"github.com/holdfast-dev/holdfast/policy/rego"
)

func newPolicy() *cobra.Command {
	return group("policy", "Try policies on files", newPolicyTest(), newPolicyList())
}

func newPolicyTest() *cobra.Command {
	var o rego.TestOptions
	var out string
	c := &cobra.Command{
		Use: "test FILE…", Short: "Judge files as conftest test does", Args: cobra.MinimumNArgs(1),
		Long: "Judge files with conftest policies, with conftest's flags and JSON, under the\nguards of the daemon: no network, no environment, no silent pass. Exit code 3: a\npolicy refuses.",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Stdin = cmd.InOrStdin()
			results, err := rego.Test(cmd.Context(), o, args)
			if err != nil {
				return err
			}
			if err := printResults(cmd.OutOrStdout(), out, results); err != nil {
				return err
			}
			for _, r := range results {
				if len(r.Failures) > 0 {
					return errDenied
				}
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringSliceVarP(&o.Policy, "policy", "p", nil, "files and folders of policies (default policy)")
	f.StringSliceVarP(&o.Data, "data", "d", nil, "files and folders of data")
	f.StringSliceVarP(&o.Namespaces, "namespace", "n", nil, "packages to evaluate (default main)")
	f.BoolVar(&o.AllNamespaces, "all-namespaces", false, "evaluate every package that holds rules")
	f.BoolVar(&o.Combine, "combine", false, "evaluate all files as one input")
	f.StringVar(&o.Parser, "parser", "", "parser for every file, instead of the one that its name implies")
	f.DurationVar(&o.Timeout, "timeout", 0, "limit of one evaluation (default 30s)")
	outputFlag(c, &out)
	return c
}

func printResults(w io.Writer, format string, results []output.CheckResult) error {
	if format == "json" {
		if results == nil {
			results = []output.CheckResult{}
		}
		return printJSON(w, results)
	}
	var passed, warned, failed, excepted int
	for _, r := range results {
		passed += r.Successes
		warned += len(r.Warnings)
		failed += len(r.Failures)
		excepted += len(r.Exceptions)
		for _, kind := range []struct {
			name string
			list []output.Result
		}{{"WARN", r.Warnings}, {"FAIL", r.Failures}, {"EXCP", r.Exceptions}} {
			for _, res := range kind.list {
				fmt.Fprintf(w, "%s - %s - %s - %s\n", kind.name, r.FileName, r.Namespace, res.Message)
			}
		}
	}
	_, err := fmt.Fprintf(w, "\n%d tests, %d passed, %d warnings, %d failures, %d exceptions\n", passed+warned+failed+excepted, passed, warned, failed, excepted)
	return err
}

func newPolicyList() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "list", Short: "List the policies that Holdfast ships", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "json" {
				return printJSON(cmd.OutOrStdout(), library.Names())
			}
			for _, n := range library.Names() {
				fmt.Fprintln(cmd.OutOrStdout(), n)
			}
			return nil
		},
	}
	outputFlag(c, &out)
	return c
}
