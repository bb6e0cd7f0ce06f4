package terraform_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// TestPlanWritesNoProtectedFile: a path that the configuration only computes is
// seen in the plan, and nothing is written.
func TestPlanWritesNoProtectedFile(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		l := newLab(t, e)
		own := t.TempDir()
		l.cfg.Protected.Paths = []string{own}
		for name, dir := range map[string]string{"a path of the operator's": own, "the state directory": l.cfg.StateDir} {
			l.spec.Variables = map[string]string{"dir": dir}
			target := l.target(t)
			r, err := target.Render(t.Context(), snapshot("one", map[string]string{
				"infra/main.tf":             "variable \"dir\" { type = string }\nresource \"local_file\" \"x\" {\n  content = \"x\"\n  filename = \"${var.dir}/x\"\n}\n",
				"infra/.terraform.lock.hcl": string(e.lock(t, map[string]string{"local": "1.4.0"})),
			}))
			if err != nil {
				t.Fatal(err)
			}
			_, err = target.Plan(t.Context(), r)
			wantFault(t, err, fault.Denied, "local_file.x", "it names "+dir, "infra/main.tf:")
			if _, err := os.Stat(filepath.Join(dir, "x")); err == nil {
				t.Errorf("%s: the file was written", name)
			}
		}
	})
}
