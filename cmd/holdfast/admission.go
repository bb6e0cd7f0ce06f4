package main

import (
	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets/kubernetes"
)

func newAdmission() *cobra.Command {
	var file, action string
	var users, namespaces []string
	c := &cobra.Command{
		Use: "admission ENVIRONMENT", Short: "Print an admission policy that keeps others from writing managed objects", Args: cobra.ExactArgs(1),
		Long: `Print a ValidatingAdmissionPolicy and its binding, for an administrator of the cluster to
apply: only Holdfast, the accounts that stacks are impersonated as, and Kubernetes itself
may then write what a stack declares. Subresources (status, scale) and metadata stay open,
but for Holdfast's marks. Begin with --action warn or audit. Who else has to write, such as
a backup tool that restores, is named with --user.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			own, err := writers(cfg, args[0])
			if err != nil {
				return err
			}
			b, err := kubernetes.AdmissionPolicy(kubernetes.AdmissionConfig{
				Name: args[0] + "-managed", Action: kubernetes.AdmissionAction(action), Users: append(own, users...), Namespaces: namespaces,
			})
			if err != nil {
				return usageError{err}
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		},
	}
	c.Flags().StringVarP(&file, "config", "c", defaultConfig, "the operator's file")
	c.Flags().StringVar(&action, "action", string(kubernetes.AdmissionDeny), "deny, warn or audit")
	c.Flags().StringArrayVar(&users, "user", nil, "who else may write; can be repeated")
	c.Flags().StringArrayVar(&namespaces, "namespace", nil, "only in this namespace; can be repeated")
	return c
}

// writers returns who writes for Holdfast in an environment: its own account, and the
// service accounts that stacks there may be.
func writers(cfg *config.Loaded, environment string) ([]string, error) {
	const op = "holdfast.admission"
	var out []string
	known := false
	for _, e := range cfg.Environments {
		if e.Name != environment || e.Kubernetes == nil {
			continue
		}
		known = true
		rc, err := restConfig(e.Kubernetes)
		if err != nil {
			return nil, err
		}
		user := kubernetes.UserOf(rc)
		if user == "" {
			return nil, fault.New(fault.Invalid, op, "use a token of a service account, or a client certificate", "who Holdfast is to the cluster does not show in its credential")
		}
		out = append(out, user)
	}
	if !known {
		return nil, fault.New(fault.Invalid, op, "name an environment with a cluster", "there is no cluster environment %q", environment)
	}
	for _, a := range cfg.Allow {
		if a.Covers(environment) {
			for _, sa := range a.ServiceAccounts {
				out = append(out, kubernetes.AccountUser(sa))
			}
		}
	}
	return out, nil
}
