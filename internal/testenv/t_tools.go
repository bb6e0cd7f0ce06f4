package testenv

import (
	"os/exec"
	"testing"
)

// RequireTool returns the path of a tool and fails the test, never skips it,
// when the tool is missing.
func RequireTool(t testing.TB, name string) string {
	t.Helper()
	path, err := Tool(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Terraforms returns the engines to test with, by name: always "tofu", and
// "terraform" where one is on PATH.
func Terraforms(t testing.TB) map[string]string {
	t.Helper()
	engines := map[string]string{"tofu": RequireTool(t, "tofu")}
	if path, err := exec.LookPath("terraform"); err == nil {
		engines["terraform"] = path
	} else {
		t.Log("no terraform on PATH: testing with OpenTofu only")
	}
	return engines
}
