package kubernetes

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
)

func TestServiceAccountIsChecked(t *testing.T) {
	t.Parallel()
	c := offline(t, nil).c
	for _, sa := range []string{"deployer", "/deployer", "shop/", "shop/a/b", "shop/a:b", "sh:op/a", "holdfast-system/holdfast"} {
		if _, err := New(c, spec("shop", func(s *Spec) { s.ServiceAccount = sa })); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q: %v", sa, err)
		}
	}
}

// A stack that is impersonated may do what its account may, whatever the daemon may;
// and the daemon needs no right to write for it.
func TestImpersonation(t *testing.T) {
	t.Parallel()
	env := testenv.SharedCluster(t)
	ns, own := testenv.Namespace(t, env), testenv.Namespace(t, env)
	daemon, conf := account(t, env, own)
	tenant, _ := account(t, env, ns)
	admin := dyn(t, env.Config)
	impersonated := func(conf *rest.Config) *Target {
		tt := target(t, conf, ns, nil, func(s *Spec) { s.ServiceAccount = ns + "/deployer" })
		tt.c.cfg.Namespace = own
		return tt
	}
	tt := impersonated(conf)
	files := map[string]string{"a.yaml": configMap("a", "1")}
	r := mustRender(t, tt, files)
	rights, err := tt.Access(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rights {
		if len(r.Missing) > 0 {
			got = append(got, fmt.Sprintf("%s %s/%s%v: %s", r.Account, r.Namespace, r.Resource, r.Names, strings.Join(r.Missing, " ")))
		}
	}
	want := []string{
		" " + own + "/configmaps[]: get list create update delete",
		" " + ns + "/configmaps[]: get list watch",
		" " + ns + "/events[]: create patch",
		" " + ns + "/serviceaccounts[deployer]: impersonate",
		tenant + " " + ns + "/configmaps[]: get create patch delete",
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("missing:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	create(t, admin, string(GrantManifest(daemon, rights)))
	deployed := deploy(t, tt, files)
	if live := getObject(t, admin, "configmaps", ns, "a"); !tt.ours(live) {
		t.Errorf("live: %s", mustJSON(live.Object))
	}
	// Its drift is found with the daemon's watch, and reverted as the account.
	found := observe(t, tt, deployed)
	edit(t, admin, "x", "configmaps", ns, "a", `{"data":{"key":"2"}}`)
	if f := next(t, found); f.ID.Name != "a" {
		t.Errorf("finding: %+v", f)
	}
	deploy(t, tt, files)

	// A daemon that may do everything does not lend that to the stack.
	strong := impersonated(env.Config)
	files["d.yaml"] = deployment
	rs := mustRender(t, strong, files)
	if _, err := strong.Plan(t.Context(), rs); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), tenant) {
		t.Errorf("the account may not have Deployments, and the stack: %v", err)
	}
}
