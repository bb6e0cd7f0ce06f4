// Command local serves hashicorp/local 1.4.0, whose own main package cannot be
// built as a module any more. The demo and the tests use its local_file.
package main

import (
	"github.com/hashicorp/terraform-plugin-sdk/plugin"
	"github.com/terraform-providers/terraform-provider-local/local"
)

func main() {
	plugin.Serve(&plugin.ServeOpts{ProviderFunc: local.Provider})
}
