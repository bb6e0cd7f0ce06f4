// Command controlplane is a real Kubernetes control plane in one binary: the
// first argument chooses the component, the rest are that component's own
// flags. It exists so that the demo and the tests need nothing but Go. With
// "supervise" it keeps a set of components running for as long as anybody uses
// them, see supervise.go.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: controlplane etcd|kube-apiserver|kube-controller-manager|kube-scheduler [flags]")
		fmt.Fprintln(os.Stderr, "       controlplane supervise CONFIG")
		os.Exit(2)
	}
	component := os.Args[1]
	os.Args = os.Args[1:]
	var cmd *cobra.Command
	switch component {
	case "etcd":
		etcdmain.Main(os.Args)
		return
	case "supervise":
		os.Exit(superviseMain(os.Args[1:]))
	case "kube-apiserver":
		cmd = apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		cmd = controllermanager.NewControllerManagerCommand()
	case "kube-scheduler":
		cmd = scheduler.NewSchedulerCommand()
	default:
		fmt.Fprintf(os.Stderr, "controlplane: unknown component %q\n", component)
		os.Exit(2)
	}
	os.Exit(cli.Run(cmd))
}
