package main

import (
	"bytes"
	"strings"
	"testing"
)

// The example policy runs with the command that a policy author uses.
func TestExamplePolicy(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	code := Main(t.Context(), []string{"policy", "test", "-p", "../../examples/policies", "--all-namespaces", "../../examples/shop/apps/web/service.yaml"}, nil, &stdout, &stderr)
	if code != exitDenied || !strings.Contains(stdout.String(), "Service web: set the label app.kubernetes.io/part-of") {
		t.Errorf("exit code %d\n%s%s", code, stdout.String(), stderr.String())
	}
}
