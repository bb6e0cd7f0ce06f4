package kubernetes

import (
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

const twoDocuments = `# What people should know.
apiVersion: v1
kind: ConfigMap
metadata: {name: a}
data:
  key: "1"   # the key
  other: plain
---
# The web server.
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2 # two are enough
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: registry.example/web:1.0
        env:
        - name: A
          value: 'a'
`

func TestAdoptDrift(t *testing.T) {
	t.Parallel()
	deployment := plan.ObjectID{Kind: "Deployment.apps", Namespace: "shop", Name: "web"}
	config := plan.ObjectID{Kind: "ConfigMap", Namespace: "shop", Name: "a"}
	at := func(id plan.ObjectID, fields ...plan.Field) targets.Finding {
		return targets.Finding{ID: id, Class: targets.Modified, Fields: fields}
	}
	env := "/spec/template/spec/containers/0/env"
	for name, tc := range map[string]struct {
		files  map[string]string
		change func(*Spec)
		found  []targets.Finding
		from   []string // the lines of file.yaml that change
		to     []string
		denied string
	}{
		"a number": {found: []targets.Finding{at(deployment, plan.Field{Path: "/spec/replicas", From: "5", To: "2"})},
			from: []string{"  replicas: 2 # two are enough"}, to: []string{"  replicas: 5 # two are enough"}},
		"a quoted text": {found: []targets.Finding{at(config, plan.Field{Path: "/data/key", From: `"it's \"2\""`, To: `"1"`})},
			from: []string{`  key: "1"   # the key`}, to: []string{`  key: "it's \"2\""   # the key`}},
		"a text that needs quotes": {found: []targets.Finding{at(config, plan.Field{Path: "/data/other", From: `"true"`, To: `"plain"`})},
			from: []string{"  other: plain"}, to: []string{`  other: "true"`}},
		"two objects": {found: []targets.Finding{at(config, plan.Field{Path: "/data/other", From: `"x"`}), at(deployment, plan.Field{Path: env + "/0/value", From: `"b"`})},
			from: []string{"  other: plain", "          value: 'a'"}, to: []string{"  other: x", "          value: b"}},
		"something added": {found: []targets.Finding{at(deployment, plan.Field{Path: env + "/1", From: `{"name":"B","value":"b"}`, Foreign: true})},
			to: []string{"        - name: B", "          value: b"}},
		"something removed": {found: []targets.Finding{at(deployment, plan.Field{Path: env, To: `[{"name":"A","value":"a"}]`})},
			from: []string{"        env:", "        - name: A", "          value: 'a'"}},
		"a field that nobody declares": {found: []targets.Finding{at(deployment, plan.Field{Path: "/spec/strategy/type", From: `"Recreate"`})}, denied: "/spec/strategy/type is not declared there"},
		"an object that is gone":       {found: []targets.Finding{{ID: config, Class: targets.Missing}}, denied: "an object that is missing cannot be adopted"},
		"a value that is cut off":      {found: []targets.Finding{at(config, plan.Field{Path: "/data/key", From: `"aaaa… (9999 bytes)`})}, denied: "too long to be in a finding"},
		"a secret": {files: map[string]string{"file.yaml": secretManifest("x")},
			found: []targets.Finding{at(plan.ObjectID{Kind: "Secret", Namespace: "shop", Name: "login"}, plan.Field{Path: "/data/password", From: `"masked"`})}, denied: "does not hold its values"},
		"what an overlay sets": {
			files: map[string]string{"file.yaml": twoDocuments, "kustomization.yaml": "resources: [file.yaml]\nreplicas: [{name: web, count: 3}]\n"},
			found: []targets.Finding{at(deployment, plan.Field{Path: "/spec/replicas", From: "5", To: "3"})}, change: func(s *Spec) { s.Kustomize, s.Manifests = ".", nil },
			denied: "/spec/replicas is not set by file.yaml alone"},
		"what is generated": {
			files: map[string]string{"kustomization.yaml": "configMapGenerator: [{name: a, literals: [key=1], options: {disableNameSuffixHash: true}}]\n"},
			found: []targets.Finding{at(config, plan.Field{Path: "/data/key", From: `"2"`})}, change: func(s *Spec) { s.Kustomize, s.Manifests = ".", nil },
			denied: "no document there declares it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt := offline(t, tc.change)
			files := tc.files
			if files == nil {
				files = map[string]string{"file.yaml": twoDocuments}
			}
			out, err := tt.Adopt(t.Context(), snapshot(files), tc.found)
			if tc.denied != "" {
				if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), tc.denied) {
					t.Errorf("got %v, want %q", err, tc.denied)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := twoDocuments
			for i, line := range tc.from {
				to := ""
				if i < len(tc.to) {
					to = tc.to[i] + "\n"
				}
				want = strings.Replace(want, line+"\n", to, 1)
			}
			if len(tc.from) == 0 {
				want += strings.Join(tc.to, "\n") + "\n"
			}
			if got := string(out["file.yaml"]); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}
