package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// written returns an Event as an API server writes it.
func written(user, verb, manager, agent string, at time.Time, change ...string) string {
	e := fmt.Sprintf(`{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"id-1","stage":"ResponseComplete",
		"requestURI":"/api/v1/namespaces/shop/configmaps/a?fieldManager=%s","verb":%q,"user":{"username":%q,"groups":["developers"]},"sourceIPs":["10.0.0.7"],
		"userAgent":%q,"objectRef":{"resource":"configmaps","namespace":"shop","name":"a","apiVersion":"v1"},"responseStatus":{"code":200},"stageTimestamp":%q}`,
		manager, verb, user, agent, at.UTC().Format(time.RFC3339Nano))
	e = strings.NewReplacer("\n", "", "\t", "", "?fieldManager=\"", "\"").Replace(e)
	return strings.NewReplacer(change...).Replace(e)
}

func TestWhoDidIt(t *testing.T) {
	t.Parallel()
	second := time.Now().UTC().Truncate(time.Second)
	at := second.Add(400 * time.Millisecond)
	id := plan.ObjectID{Kind: "ConfigMap", Namespace: "shop", Name: "a"}
	modified := targets.Finding{ID: id, Class: targets.Modified, Actor: "kubectl-edit", Since: second, Noticed: at.Add(3 * time.Millisecond)}
	anonymous := targets.Finding{ID: id, Class: targets.Modified, Noticed: at.Add(3 * time.Millisecond)}
	missing := targets.Finding{ID: id, Class: targets.Missing, Noticed: at.Add(3 * time.Millisecond)}
	const kubectl = "kubectl/v1.36.0 (linux/amd64)"
	carol := written("carol", "patch", "kubectl-edit", kubectl, at)
	for name, tc := range map[string]struct {
		f      targets.Finding
		events []string
		user   string
	}{
		"the only one":                   {modified, []string{carol}, "carol"},
		"a list of events":               {modified, []string{`{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[` + carol + `]}`}, "carol"},
		"nobody":                         {modified, nil, ""},
		"another manager":                {modified, []string{written("dana", "patch", "helm", kubectl, at)}, ""},
		"another manager beside":         {modified, []string{carol, written("dana", "patch", "helm", kubectl, at)}, "carol"},
		"two users of one manager":       {modified, []string{carol, written("dana", "patch", "kubectl-edit", kubectl, at)}, ""},
		"the same user twice":            {modified, []string{carol, carol}, "carol"},
		"a manager by its user agent":    {targets.Finding{ID: id, Class: targets.Modified, Actor: "kubectl", Since: second, Noticed: at}, []string{written("carol", "update", "", kubectl, at)}, "carol"},
		"another time":                   {modified, []string{written("carol", "patch", "kubectl-edit", kubectl, at.Add(-time.Minute))}, ""},
		"afterwards":                     {modified, []string{written("carol", "patch", "kubectl-edit", kubectl, at.Add(time.Minute))}, ""},
		"another object":                 {modified, []string{written("carol", "patch", "kubectl-edit", kubectl, at, `"name":"a"`, `"name":"b"`)}, ""},
		"another namespace":              {modified, []string{written("carol", "patch", "kubectl-edit", kubectl, at, `"namespace":"shop"`, `"namespace":"x"`)}, ""},
		"another group":                  {modified, []string{written("carol", "patch", "kubectl-edit", kubectl, at, `"name":"a"`, `"name":"a","apiGroup":"acme.example"`)}, ""},
		"what was refused":               {modified, []string{written("carol", "patch", "kubectl-edit", kubectl, at, `"code":200`, `"code":403`)}, ""},
		"what has not ended":             {modified, []string{written("carol", "patch", "kubectl-edit", kubectl, at, "ResponseComplete", "RequestReceived")}, ""},
		"a dry run":                      {modified, []string{written("carol", "patch", "kubectl-edit&dryRun=All", kubectl, at)}, ""},
		"a status":                       {modified, []string{written("carol", "patch", "kubectl-edit", kubectl, at, `"name":"a"`, `"name":"a","subresource":"status"`)}, ""},
		"a reader":                       {modified, []string{written("carol", "get", "kubectl-edit", kubectl, at)}, ""},
		"a deletion of what is there":    {modified, []string{written("carol", "delete", "kubectl-edit", kubectl, at)}, ""},
		"our own write":                  {modified, []string{written("holdfast", "patch", "kubectl-edit", "holdfast", at)}, ""},
		"with our credential":            {modified, []string{written("holdfast", "patch", "kubectl-edit", kubectl, at)}, "holdfast"},
		"somebody who calls himself us":  {modified, []string{written("mallory", "patch", "kubectl-edit", "holdfast", at)}, "mallory"},
		"no managed fields":              {anonymous, []string{carol}, "carol"},
		"no managed fields, two users":   {anonymous, []string{carol, written("dana", "patch", "helm", kubectl, at)}, ""},
		"a deletion":                     {missing, []string{carol, written("dana", "delete", "", kubectl, at)}, "dana"},
		"the last deletion":              {missing, []string{written("carol", "delete", "", kubectl, at.Add(-time.Minute)), written("dana", "delete", "", kubectl, at)}, "dana"},
		"a deletion of a collection":     {missing, []string{written("dana", "deletecollection", "", kubectl, at, `"name":"a",`, "")}, "dana"},
		"an edit of what is gone":        {missing, []string{carol}, ""},
		"somebody who acts as another":   {modified, []string{written("bot", "patch", "kubectl-edit", kubectl, at, `"sourceIPs"`, `"impersonatedUser":{"username":"carol"},"sourceIPs"`)}, "carol"},
		"ours, which acts as an account": {modified, []string{written("holdfast", "patch", "kubectl-edit", "holdfast", at, `"sourceIPs"`, `"impersonatedUser":{"username":"system:serviceaccount:shop:deployer"},"sourceIPs"`)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt := offline(t, nil)
			tt.c.cfg.Audit, tt.c.cfg.ServiceAccount, tt.c.agent = &Audit{}, "holdfast", "holdfast"
			tt.c.resources[schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}] = configMaps
			for _, e := range tc.events {
				if _, err := tt.c.cfg.Audit.Add([]byte(e)); err != nil {
					t.Fatal(err)
				}
			}
			f, ok := tt.Attribute(tc.f)
			if f.User != tc.user || ok != (tc.user != "") || ok && (f.Origin.SourceIPs[0] != "10.0.0.7" || f.Origin.UserAgent == "" || f.Origin.Time.IsZero()) {
				t.Errorf("it was %q: %s", f.User, mustJSON(f))
			}
		})
	}
}

func TestAuditIsBounded(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "x", "[]", "{}", `{"kind":"Pod"}`, `{"kind":"EventList","items":[1]}`, `{"kind":"Event","user":7}`} {
		if n, err := new(Audit).Add([]byte(text)); err == nil || n != 0 {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
	var a Audit
	now := time.Now()
	for i := range auditObjects + 10 {
		if _, err := a.Add([]byte(written("carol", "patch", "m", "k", now, `"name":"a"`, fmt.Sprintf(`"name":"a-%d"`, i)))); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 * auditPerObject {
		if _, err := a.Add([]byte(written("carol", "patch", "m", "k", now))); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.m) > auditObjects || len(a.m[auditKey{"", "configmaps", "shop", "a"}]) > auditPerObject {
		t.Errorf("%d objects, %d writes of one", len(a.m), len(a.m[auditKey{"", "configmaps", "shop", "a"}]))
	}
}

func FuzzAudit(f *testing.F) {
	f.Add([]byte(written("carol", "patch", "m", "k", time.Now())))
	f.Add([]byte(`{"kind":"EventList","items":[{"verb":"delete","stage":"ResponseComplete","objectRef":{},"responseStatus":{"code":200},"impersonatedUser":{}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var a Audit
		n, _ := a.Add(b)
		if stored := len(a.m); stored > n {
			t.Errorf("%d taken, %d stored", n, stored)
		}
	})
}

// The log is followed over rotations, also when it is cut in the middle of a line.
func TestFollowAuditLog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	ctx, cancel := context.WithCancel(t.Context())
	var a Audit
	done := make(chan error, 1)
	learned := make(chan bool, 100)
	go func() { done <- a.Follow(ctx, path, slog.New(slog.DiscardHandler), func() { learned <- true }) }()
	write := func(text string, flags int) {
		f, err := os.OpenFile(path, flags|os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	know := func(name string) {
		t.Helper()
		for {
			a.mu.Lock()
			_, ok := a.m[auditKey{"", "configmaps", "shop", name}]
			a.mu.Unlock()
			if ok {
				return
			}
			select {
			case <-learned:
			case <-time.After(30 * time.Second):
				t.Fatalf("%s was not learned of", name)
			}
		}
	}
	event := func(name string) string {
		return written("carol", "patch", "m", "k", time.Now(), `"name":"a"`, `"name":"`+name+`"`) + "\n"
	}
	first := event("first")
	write(first[:20], os.O_APPEND)
	write(first[20:]+"\nnot an event\n"+event("second"), os.O_APPEND)
	know("first")
	know("second")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write(event("third"), os.O_APPEND)
	know("third")
	write("", os.O_TRUNC)
	write(strings.Repeat("x", MaxAuditEvent+(300<<10))+"\n"+event("fourth"), os.O_APPEND)
	know("fourth")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A real API server's log names the user of a real edit and of a real deletion.
func TestAttributionByAuditLog(t *testing.T) {
	t.Parallel()
	c := testenv.SharedCluster(t)
	ns := testenv.Namespace(t, c)
	tt := target(t, c.Config, ns, nil, nil)
	tt.c.cfg.Audit = &Audit{}
	files := map[string]string{"a.yaml": configMap("a", "1"), "b.yaml": configMap("b", "1")}
	r := deploy(t, tt, files)
	found := observe(t, tt, r)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	learned := make(chan bool, 1)
	go func() {
		done <- tt.c.cfg.Audit.Follow(ctx, c.AuditLog, slog.New(slog.DiscardHandler), func() {
			select {
			case learned <- true:
			default:
			}
		})
	}()
	defer func() { cancel(); <-done }()

	carol := dyn(t, c.User("carol@acme.example", "system:masters")).Resource(gvrs["configmaps"]).Namespace(ns)
	if _, err := carol.Patch(t.Context(), "a", types.MergePatchType, []byte(`{"data":{"key":"2"}}`), metav1.PatchOptions{FieldManager: "kubectl-edit"}); err != nil {
		t.Fatal(err)
	}
	edited := next(t, found)
	if err := carol.Delete(t.Context(), "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, f := range []targets.Finding{edited, next(t, found)} {
		for end := time.After(30 * time.Second); f.User == ""; {
			if f, _ = tt.Attribute(f); f.User != "" {
				break
			}
			select {
			case <-learned:
			case <-end:
				t.Fatalf("nobody is known: %s", mustJSON(f))
			}
		}
		b, _ := json.Marshal(f.Origin)
		if f.User != "carol@acme.example" || !strings.Contains(string(b), "127.0.0.1") || f.Origin.AuditID == "" {
			t.Errorf("%s: %s, %s", f.ID, f.User, b)
		}
	}
}
