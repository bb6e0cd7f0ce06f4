package kubernetes

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/targets/targetstest"
)

// The tests of this file are each about a class of mistake that cost another
// system an advisory; docs/threat-model.md lists them.

// ofApp is a target of the kustomization in app.
func ofApp(t *testing.T, change func(*Spec)) *Target {
	t.Helper()
	return offline(t, func(s *Spec) {
		s.Manifests, s.Kustomize, s.Dir = nil, ".", "app"
		if change != nil {
			change(s)
		}
	})
}

// app returns the files of app with more lines in its kustomization.yaml.
func app(lines string, more map[string]string) map[string]string {
	files := map[string]string{"app/kustomization.yaml": "resources: [cm.yaml]\n" + lines, "app/cm.yaml": configMap("a", "x")}
	maps.Copy(files, more)
	return files
}

// refused checks that rendering fails with an error of the repository's, that
// says want.
func refused(t *testing.T, tt *Target, files map[string]string, kind fault.Kind, want string) {
	t.Helper()
	_, err := tt.Render(t.Context(), snapshot(files))
	if err == nil || !strings.Contains(err.Error(), want) || fault.KindOf(err) != kind {
		t.Errorf("%v (%v), want %v %q", err, fault.KindOf(err), kind, want)
	}
}

// Flux CVE-2022-24877: a path in kustomization.yaml reads a file of the host.
func TestClass02_kustomize_path_traversal(t *testing.T) {
	t.Parallel()
	const canary = "canary-of-the-host"
	host := filepath.Join(t.TempDir(), "canary")
	if err := os.WriteFile(host, []byte(canary), 0o600); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 20) + strings.TrimPrefix(host, "/")
	for field, format := range map[string]string{
		"resources":       "bases: [%q]\n",
		"components":      "components: [%q]\n",
		"crds":            "crds: [%q]\n",
		"configurations":  "configurations: [%q]\n",
		"patch":           "patches: [{path: %q}]\n",
		"old patch":       "patchesStrategicMerge: [%q]\n",
		"JSON patch":      "patchesJson6902: [{path: %q, target: {version: v1, kind: ConfigMap, name: a}}]\n",
		"replacement":     "replacements: [{path: %q}]\n",
		"generator":       "configMapGenerator: [{name: g, files: [%q]}]\n",
		"generator's key": "configMapGenerator: [{name: g, files: [\"k=%s\"]}]\n",
		"environment":     "secretGenerator: [{name: g, envs: [%q]}]\n",
		"old environment": "configMapGenerator: [{name: g, env: %q}]\n",
	} {
		for p, want := range map[string]string{host: "not a relative path", up: "leaves the repository"} {
			t.Run(field+" "+want, func(t *testing.T) {
				t.Parallel()
				r, err := ofApp(t, nil).Render(t.Context(), snapshot(app(fmt.Sprintf(format, p), nil)))
				if err == nil || !strings.Contains(err.Error(), want) || fault.KindOf(err) != fault.Invalid {
					t.Errorf("%v, want %q", err, want)
				}
				if strings.Contains(fmt.Sprintf("%v %v", r.Documents, err), canary) {
					t.Error("the file of the host was read")
				}
			})
		}
	}
}

// Flux CVE-2022-24878: a kustomization without an end.
func TestClass03_endless_kustomization(t *testing.T) {
	t.Parallel()
	base := func(lines string) map[string]string {
		return app(lines, map[string]string{"b/kustomization.yaml": "resources: [../app]\n"})
	}
	long := map[string]string{}
	for i := range 2000 {
		long[fmt.Sprintf("c%d/kustomization.yaml", i)] = fmt.Sprintf("resources: [../c%d]\n", i+1)
	}
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"itself":           {app("bases: [.]\n", nil), "base of itself"},
		"a circle":         {base("bases: [../b]\n"), "base of itself"},
		"by a component":   {app("components: [../c]\n", map[string]string{"c/kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\ncomponents: [../app]\n"}), "base of itself"},
		"a circle of two":  {app("components: [../c]\n", map[string]string{"c/kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\ncomponents: [../d]\n", "d/kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\ncomponents: [../c]\n"}), "base of itself"},
		"doubled 22 times": {diamond(22, "resources: [../l%[1]d, ../m%[1]d]\n"), "more than 1000 folders"},
		"a long chain":     {app("bases: [../c0]\n", long), "nested deeper than 32"},
		"a symbolic link":  {app("bases: [l]\n", map[string]string{"app/l": "-> ../app"}), "too many symbolic links"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			refused(t, ofApp(t, nil), c.files, fault.Invalid, c.want)
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// Kustomize CVE-2026-113708: a remote reference becomes arguments of git.
func TestClass04_kustomize_remote_reference(t *testing.T) {
	t.Parallel()
	for _, ref := range []string{
		"https://example.com/x.yaml",
		"https://example.com/x?ref=--upload-pack=id",
		"git@example.com:a/b",
		"git@-oProxyCommand=id:a/b",
		"ssh://-oProxyCommand=id/x",
		"ext::sh -c id",
		"file:///srv/x",
		"github.com/acme/shop//deploy?ref=main",
		"GitHub.com/acme/shop",
		"acme/shop.git/deploy",
	} {
		for _, field := range []string{"bases: [%q]\n", "components: [%q]\n", "patches: [{path: %q}]\n", "configMapGenerator: [{name: g, files: [%q]}]\n"} {
			if strings.Contains(field, "files") && strings.Contains(ref, "=") {
				continue // that is a key, and a path
			}
			refused(t, ofApp(t, nil), app(fmt.Sprintf(field, ref), nil), fault.Invalid, "remote resource")
		}
	}
}

// Kustomize CVE-2026-113709: inflating a Helm chart runs programs of the repository's choice.
func TestClass05_kustomize_runs_helm(t *testing.T) {
	t.Parallel()
	for _, field := range []string{
		"helmCharts: [{name: x, repo: 'https://example.com'}]\n", "HelmCharts: [{name: x}]\n",
		"helmChartInflationGenerator: [{chartName: x}]\n", "helmGlobals: {configHome: ., chartHome: .}\n",
		"generators: [cm.yaml]\n", "transformers: [cm.yaml]\n", "validators: [cm.yaml]\n",
	} {
		refused(t, ofApp(t, nil), app(field, nil), fault.Invalid, "is not supported")
		refused(t, ofApp(t, nil), app("components: [../c]\n", map[string]string{
			"c/kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\n" + field,
		}), fault.Invalid, "is not supported")
	}
}

// Argo CD CVE-2026-42880, CVE-2026-45737, CVE-2023-40029: secrets in what is
// shown of live, desired and predicted objects, annotations included.
func TestClass10_secrets_in_diffs(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	log := &syncBuffer{}
	tt := target(t, c.Config, ns, log, nil)
	secrets := []string{"desired/before+of-ours", "desired/after+of-ours", "live/of+somebody-else", "added/by+somebody-else"}
	deploy(t, tt, map[string]string{"a.yaml": secretManifest(secrets[0])})
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	d := dyn(t, c.Config)
	patch := `{"metadata":{"annotations":{` + fmt.Sprintf("%q:%q", lastApplied, `{"data":{"k":"`+b64(secrets[2])+`"},"stringData":{"k":"`+secrets[2]+`"}}`) + `}},"data":{"password":"` + b64(secrets[2]) + `",`
	edit(t, d, "carol", "secrets", ns, "login", patch+fmt.Sprintf("%q:%q}}", "extra", b64(secrets[3])))
	p := mustPlan(t, tt, mustRender(t, tt, map[string]string{"a.yaml": secretManifest(secrets[1])}))
	if p.Empty() {
		t.Fatal("nothing differs, so nothing was shown")
	}
	shown := fmt.Sprintf("%s %s %s", mustJSON(p), mustJSON(p.Documents), log.String())
	for _, secret := range secrets {
		if how := targetstest.Leaks(shown, secret); how != "" {
			t.Errorf("%q is shown (%s)", secret, how)
		}
	}
	if !strings.Contains(shown, "masked") {
		t.Error("what differs is not shown at all")
	}
}

// Argo CD CVE-2025-23216: the API server quotes a value that nobody registered
// as a secret.
func TestClass11_secrets_in_api_errors(t *testing.T) {
	t.Parallel()
	const secret = "correct-horse/battery+staple"
	tt := offline(t, nil)
	quoted := fmt.Sprintf("Secret %q is invalid: data[%s]: Invalid value: %q: no", "a", secret, secret)
	err := &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: 422, Reason: metav1.StatusReasonInvalid, Message: quoted,
		Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: metav1.CauseTypeFieldValueInvalid, Message: quoted, Field: "data[" + secret + "]"}}},
	}}
	for _, kind := range []string{"Secret", "ConfigMap"} { // a line of a generator's file is a key of either
		for _, from := range []error{err, errors.Join(errors.New("apply"), err)} {
			text := fmt.Sprintf("%v %+v", tt.c.apiError(opApply, plan.ObjectID{Kind: kind, Namespace: "x", Name: "a"}, from), tt.c.apiError(opPlan, plan.ObjectID{Kind: kind, Name: "a"}, from))
			if how := targetstest.Leaks(text, secret); how != "" {
				t.Errorf("%s: the secret is in the error (%s): %s", kind, how, text)
			}
			if !strings.Contains(text, "data (FieldValueInvalid)") {
				t.Errorf("%s: the error does not name the field: %s", kind, text)
			}
		}
	}
}

// The parser quotes a part of a file before anybody knows that it is a Secret's.
func TestClass11_secrets_in_yaml_errors(t *testing.T) {
	t.Parallel()
	const secret = "geheim-hunter2"
	for _, value := range []string{"*" + secret, "!!int " + secret, "!!float " + secret, "!!bool " + secret, "!!timestamp " + secret,
		"&" + secret + " [*" + secret + "]", "{[" + secret + "]: x}", "!!binary " + secret + "!", "{<<: " + secret + "}", "[" + secret + ", }", "!x!y " + secret, "|+x " + secret, "\"\\q" + secret + "\""} {
		_, err := decode("a.yaml", []byte("# a comment\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData:\n  pw: "+value+"\n"))
		if err == nil {
			continue // it is a text like any other
		}
		if how := targetstest.Leaks(err.Error(), secret); how != "" || !strings.Contains(err.Error(), "a.yaml:2: ") && !strings.Contains(err.Error(), "a.yaml:3: ") {
			t.Errorf("%s: %v (%s)", value, err, how)
		}
	}
	if _, err := decode("a.yaml", []byte("pw: *"+secret+"\n")); err == nil || !strings.Contains(err.Error(), "an alias") {
		t.Errorf("an alias of nothing: %v", err)
	}
}

// Argo CD CVE-2026-77459, Fleet CVE-2026-44935 and others: the bound on what a
// tenant may touch holds on the main path, and not on a side path.
func TestClass16_tenant_guard_on_side_paths(t *testing.T) {
	t.Parallel()
	foreign := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: other}\n"
	for name, c := range map[string]struct {
		files map[string]string
		plain bool // manifests, not a kustomization
	}{
		"plain":             {files: map[string]string{"a.yaml": foreign}, plain: true},
		"in a list":         {files: map[string]string{"a.yaml": "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: other}}\n"}, plain: true},
		"in a list's list":  {files: map[string]string{"a.yaml": "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: List\n  items:\n  - {apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: other}}\n"}, plain: true},
		"namespace field":   {files: app("namespace: other\n", nil)},
		"patch":             {files: app("patches: [{target: {kind: ConfigMap}, patch: '[{\"op\": \"add\", \"path\": \"/metadata/namespace\", \"value\": \"other\"}]'}]\n", nil)},
		"replacement":       {files: app("replacements: [{source: {kind: ConfigMap, fieldPath: data.key}, targets: [{select: {kind: ConfigMap}, fieldPaths: [metadata.namespace], options: {create: true}}]}]\n", map[string]string{"app/cm.yaml": configMap("a", "other")})},
		"generator":         {files: app("configMapGenerator: [{name: g, namespace: other, literals: [a=b]}]\n", nil)},
		"base":              {files: app("bases: [../b]\n", map[string]string{"b/kustomization.yaml": "resources: [cm.yaml]\n", "b/cm.yaml": foreign})},
		"subject of a role": {files: map[string]string{"a.yaml": "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: a, namespace: other}\nroleRef: {kind: Role, name: x, apiGroup: rbac.authorization.k8s.io}\n"}, plain: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt := ofApp(t, nil)
			if c.plain {
				tt = offline(t, nil)
			}
			refused(t, tt, c.files, fault.Denied, "namespace other is not allowed")
		})
	}
}
