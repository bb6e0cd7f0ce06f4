package plan

import (
	"testing"

	"github.com/holdfast-dev/holdfast/sources"
)

func example() Plan {
	return Plan{
		Stack: "web", Environment: "production", Target: "kubernetes", Revision: sources.Revision{Source: "fleet", ID: "c0ffee"}, Rendered: "sha256:a",
		Changes: []Change{{ID: ObjectID{Kind: "Deployment.apps", Namespace: "shop", Name: "web"}, Action: Update, UID: "1", Before: "sha256:b", After: "sha256:c",
			Fields: []Field{{Path: "/spec/replicas", From: "1", To: "2"}}}},
		Documents: []Document{{Name: "web.yaml", Value: map[string]any{"kind": "Deployment"}}}, Payload: "sha256:d",
	}
}

// Whatever a judge can see changes the digest; the private half is bound by Payload.
func TestDigest(t *testing.T) {
	t.Parallel()
	want := example().Digest()
	if example().Digest() != want {
		t.Error("the digest is not stable")
	}
	for name, change := range map[string]func(*Plan){
		"stack":       func(p *Plan) { p.Stack = "api" },
		"environment": func(p *Plan) { p.Environment = "staging" },
		"target":      func(p *Plan) { p.Target = "terraform" },
		"revision":    func(p *Plan) { p.Revision.ID = "beef" },
		"rendered":    func(p *Plan) { p.Rendered = "sha256:x" },
		"object":      func(p *Plan) { p.Changes[0].ID.Name = "api" },
		"action":      func(p *Plan) { p.Changes[0].Action = Delete },
		"uid":         func(p *Plan) { p.Changes[0].UID = "2" },
		"before":      func(p *Plan) { p.Changes[0].Before = "sha256:x" },
		"after":       func(p *Plan) { p.Changes[0].After = "sha256:x" },
		"field":       func(p *Plan) { p.Changes[0].Fields[0].To = "3" },
		"another":     func(p *Plan) { p.Changes = append(p.Changes, p.Changes[0]) },
		"none":        func(p *Plan) { p.Changes = nil },
		"keeps":       func(p *Plan) { p.Keeps = 7 },
		"document":    func(p *Plan) { p.Documents[0].Value = map[string]any{"kind": "Job"} },
		"payload":     func(p *Plan) { p.Payload = "sha256:x" },
	} {
		p := example()
		if change(&p); p.Digest() == want {
			t.Errorf("%s: the digest is the same", name)
		}
	}
}

func TestSummary(t *testing.T) {
	t.Parallel()
	p := Plan{Changes: []Change{{Action: Create}, {Action: Update}, {Action: Replace}, {Action: Delete}}}
	if got := p.Summary(); got != "2 to create, 1 to update, 2 to delete" {
		t.Error(got)
	}
	for id, want := range map[ObjectID]string{
		{Kind: "Deployment.apps", Namespace: "shop", Name: "web"}:       "Deployment/shop/web",
		{Kind: "ClusterRole.rbac.authorization.k8s.io", Name: "reader"}: "ClusterRole/reader",
		{Kind: "local_file", Name: "module.a.local_file.motd"}:          "module.a.local_file.motd",
	} {
		if id.String() != want {
			t.Errorf("%s, want %s", id, want)
		}
	}
}
