package kubernetes

import (
	"context"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/targets/plan"
)

// session is who makes requests. A stack that is impersonated plans and applies as a
// service account of the operator's choice, so that the API server bounds it as well;
// what is Holdfast's own (inventories, marks, the Lease), its watches and its looks at
// health are the daemon's.
type session struct {
	user string // empty: the daemon itself
	dyn  dynamic.Interface
	// manager owns what is applied.
	manager string
}

// AccountUser returns who a service account, "namespace/name", is to the API server.
func AccountUser(account string) string {
	return "system:serviceaccount:" + strings.Replace(account, "/", ":", 1)
}

// as returns the session of a user. Its requests go over the connection of all others.
func (c *Cluster) as(user string) (*session, error) {
	if user == "" {
		return c.self, nil
	}
	c.sessionsMu.Lock()
	defer c.sessionsMu.Unlock()
	if s := c.sessions[user]; s != nil {
		return s, nil
	}
	conf := rest.CopyConfig(c.conf)
	// The API server adds the groups of a service account itself (Kubernetes, "User
	// impersonation").
	conf.Impersonate = rest.ImpersonationConfig{UserName: user}
	dyn, err := dynamic.NewForConfig(conf)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: connection as %s: %w", user, err)
	}
	s := &session{user: user, dyn: dyn, manager: c.cfg.FieldManager}
	c.sessions[user] = s
	return s, nil
}

func (s *session) client(r resource, namespace string) dynamic.ResourceInterface {
	if r.namespaced {
		return s.dyn.Resource(r.gvr()).Namespace(namespace)
	}
	return s.dyn.Resource(r.gvr())
}

// get returns the live object, or nil when there is none.
func (s *session) get(ctx context.Context, r resource, id plan.ObjectID) (*unstructured.Unstructured, error) {
	u, err := s.client(r, id.Namespace).Get(ctx, id.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return u, err
}

// apply makes one server-side apply. A dry run writes nothing.
func (s *session) apply(ctx context.Context, r resource, u *unstructured.Unstructured, dryRun bool) (*unstructured.Unstructured, error) {
	o := metav1.ApplyOptions{FieldManager: s.manager, Force: true}
	if dryRun {
		o.DryRun = []string{metav1.DryRunAll}
	}
	return s.client(r, u.GetNamespace()).Apply(ctx, u.GetName(), u, o)
}

// remove deletes the object if it is still the one with uid.
func (s *session) remove(ctx context.Context, r resource, id plan.ObjectID, uid string, how metav1.DeletionPropagation) error {
	u := types.UID(uid)
	return s.client(r, id.Namespace).Delete(ctx, id.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &u}, PropagationPolicy: &how,
	})
}
