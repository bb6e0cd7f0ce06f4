package kubernetes

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/holdfast-dev/holdfast/internal/daemon"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// No stack touches the daemon. Every object that a stack declares, adopts or
// prunes passes [daemon.Identity.Touches] when it is rendered, planned and applied.

func (c *Cluster) identity() daemon.Identity {
	return daemon.Identity{Namespace: c.cfg.Namespace, User: c.cfg.ServiceAccount}
}

// UserOf returns who the holder of conf is to the API server, for
// [ClusterConfig.ServiceAccount]: the subject of its token or the common name of
// its client certificate (RFC 7519, 4.1.2; Kubernetes "Authenticating"). It is
// "" where neither tells. Nothing is verified: the credential is our own.
func UserOf(conf *rest.Config) string {
	token := conf.BearerToken
	if b, err := os.ReadFile(conf.BearerTokenFile); conf.BearerTokenFile != "" && err == nil {
		token = strings.TrimSpace(string(b))
	}
	if parts := strings.Split(token, "."); len(parts) == 3 {
		var claims struct {
			Subject string `json:"sub"`
		}
		if b, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil && json.Unmarshal(b, &claims) == nil {
			return claims.Subject
		}
	}
	cert := conf.CertData
	if len(cert) == 0 && conf.CertFile != "" {
		cert, _ = os.ReadFile(conf.CertFile) // whoever connects with it says what is wrong
	}
	block, _ := pem.Decode(cert)
	if token != "" || block == nil {
		return ""
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return ""
	}
	return c.Subject.CommonName
}

// touches says how o would touch what Holdfast itself runs with, or "".
func (t *Target) touches(o *desired) (hint, why string) {
	given := map[string]string{OwnerAnnotation: t.owner, ManagedLabel: "true"}
	maps.Copy(given, o.asked)
	return t.c.identity().Touches(daemon.Object{
		GroupKind: o.u.GroupVersionKind().GroupKind(), Namespace: o.id.Namespace, Name: o.id.Name, Content: o.u.Object, Given: given,
	})
}

// reaches refuses a cluster role binding with which the roles that are declared
// beside it would reach Holdfast.
func (t *Target) reaches(objects []*desired) error {
	if t.spec.Allow.ClusterPowers {
		return nil
	}
	all := make([]daemon.Object, len(objects))
	for i, o := range objects {
		all[i] = daemon.Object{GroupKind: o.u.GroupVersionKind().GroupKind(), Name: o.id.Name, Content: o.u.Object}
	}
	for i, o := range objects {
		if hint, why := t.c.identity().Reaches(all[i], all); why != "" {
			return fault.New(fault.Denied, opRender, hint+"; an operator that needs it has clusterPowers: true in allow: of the operator's file", "%s: %s: %s", o.from.at(), o.id, why)
		}
	}
	return nil
}

// untouchable says why the stack may not have the object id, and what to do
// about it, or "". u is the live object, or nil.
func (t *Target) untouchable(id plan.ObjectID, u *unstructured.Unstructured) (hint, why string) {
	o := daemon.Object{GroupKind: schema.ParseGroupKind(id.Kind), Namespace: id.Namespace, Name: id.Name, Live: true}
	if u != nil {
		o.Content = u.Object
	}
	if hint, why = t.c.identity().Touches(o); why != "" {
		return hint, why
	}
	return t.outside(id, id.Namespace == "")
}

// guard checks everything that a granted plan writes once more: the rules may
// be others than when it was made.
func (t *Target) guard(priv *planned) error {
	for i := range priv.changes {
		c := &priv.changes[i]
		if c.obj != nil {
			if err := t.admit(c.obj); err != nil {
				return err
			}
			continue
		}
		if hint, why := t.untouchable(c.ID, nil); why != "" {
			return fault.New(fault.Denied, opApply, hint, "%s cannot be pruned: %s", c.ID, why)
		}
	}
	return nil
}
