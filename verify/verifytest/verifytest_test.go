package verifytest_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/attest"
	"github.com/holdfast-dev/holdfast/verify/registry"
	"github.com/holdfast-dev/holdfast/verify/sbom"
	"github.com/holdfast-dev/holdfast/verify/sigstore"
	"github.com/holdfast-dev/holdfast/verify/verifytest"
)

// TestVerifiers runs the suite against what the daemon uses, on each kind of registry.
func TestVerifiers(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]testenv.RegistryOptions{
		"referrers API":                {Referrers: true},
		"fallback tag, TLS, basicauth": {TLS: true, Auth: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg, err := testenv.NewRegistry(o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = reg.Close() })
			host := registry.Host{InsecureHTTP: !o.TLS, CA: reg.CA}
			if o.Auth {
				host.Username, host.Password = reg.Username, func() (string, error) { return reg.Password, nil }
			}
			client, err := registry.New(registry.Config{Hosts: map[string]registry.Host{reg.Host: host}})
			if err != nil {
				t.Fatal(err)
			}
			verifytest.Run(t, verifytest.Bed{
				Host:     reg.Host,
				Registry: verifytest.Registry{Transport: reg.Transport(), Username: reg.Username, Password: reg.Password},
				Set: func(conf verify.Config) (*verify.Set, error) {
					conf.Resolver = client
					return verify.NewSet(conf, attest.Factory([]attest.Source{sigstore.Source(sigstore.NewStore(client))}, sbom.New))
				},
				Replay: func(conf verify.Config, in verify.Inputs) (*verify.Set, error) {
					past := registry.Replay(in)
					conf.Resolver = past
					return verify.NewSet(conf, attest.Factory([]attest.Source{sigstore.Source(sigstore.NewStore(past))}, sbom.New))
				},
			})
		})
	}
}

// TestRegistryFailureIsNotAbsence breaks each request for evidence in turn.
func TestRegistryFailureIsNotAbsence(t *testing.T) {
	t.Parallel()
	reg, err := testenv.NewRegistry(testenv.RegistryOptions{Referrers: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reg.Close() })
	a, err := verifytest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	pem, err := a.Key("release")
	if err != nil {
		t.Fatal(err)
	}
	d, err := verifytest.PushImage(t.Context(), reg.Host+"/app:1", verifytest.ImageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, broken := range []string{"/referrers/", ".sig", ".att"} {
		proxy, err := testenv.NewFaultProxy(reg.URL())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = proxy.Close() })
		proxy.Set(testenv.Fault{Status: http.StatusServiceUnavailable, Match: func(r *http.Request) bool { return strings.Contains(r.URL.Path, broken) }})
		host := strings.TrimPrefix(proxy.URL(), "http://")
		client, err := registry.New(registry.Config{Hosts: map[string]registry.Host{host: {InsecureHTTP: true}}})
		if err != nil {
			t.Fatal(err)
		}
		set, err := verify.NewSet(verify.Config{Resolver: client, Revocations: new(verify.Revocations), Rules: []verify.Rule{{
			Name: "r", Kind: verify.KindImage, Repositories: []string{"**"},
			Signers: []verify.Signer{{Name: "release", Key: &verify.Key{PEM: pem}, Unlogged: true}},
			Require: []verify.Requirement{{Signature: &verify.SignatureRequirement{}, Signers: []string{"release"}}},
		}}}, attest.Factory([]attest.Source{sigstore.Source(sigstore.NewStore(client))}))
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = set.Verify(t.Context(), "e", []verify.Subject{{Kind: verify.KindImage, Reference: host + "/app@" + d.String()}})
		if fault.KindOf(err) != fault.Transient || err == nil {
			t.Errorf("%s: %v (%v)", broken, err, fault.KindOf(err))
		}
	}
}
