package verifytest_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/attest"
	"github.com/holdfast-dev/holdfast/verify/registry"
	"github.com/holdfast-dev/holdfast/verify/sigstore"
	"github.com/holdfast-dev/holdfast/verify/verifytest"
)

const (
	chartConfig  = "application/vnd.cncf.helm.config.v1+json"
	chartContent = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
	chartProof   = "application/vnd.cncf.helm.chart.provenance.v1.prov"
)

// manifestOf is a manifest as bytes.
type manifestOf []byte

func (m manifestOf) RawManifest() ([]byte, error)      { return m, nil }
func (manifestOf) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// pushChart pushes what helm push does, with that config and layers of these types, and
// returns its digest.
func pushChart(t *testing.T, ref, configType, config string, layers ...string) digest.Digest {
	t.Helper()
	tag := must(name.ParseReference(ref))(t)
	put := func(mediaType, content string) map[string]any {
		t.Helper()
		must(0, remote.WriteLayer(tag.Context(), static.NewLayer([]byte(content), types.MediaType(mediaType)), remote.WithContext(t.Context())))(t)
		h := sha256.Sum256([]byte(content))
		return map[string]any{"mediaType": mediaType, "size": len(content), "digest": "sha256:" + hex.EncodeToString(h[:])}
	}
	list := []any{}
	for i, l := range layers {
		list = append(list, put(l, fmt.Sprintf("layer %d of %s", i, ref)))
	}
	manifest := must(json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": types.OCIManifestSchema1, "config": put(configType, config), "layers": list}))(t)
	must(0, remote.Put(tag, manifestOf(manifest), remote.WithContext(t.Context())))(t)
	return digest.FromBytes(manifest)
}

// TestCharts: a signed Helm chart is taken for the chart and the version that it is,
// and for nothing else; a copy of another chart has a good signature too.
func TestCharts(t *testing.T) {
	t.Parallel()
	a := must(verifytest.NewAuthority())(t)
	signer := verify.Signer{Name: "release", Key: &verify.Key{PEM: must(a.Key("release"))(t)}, Unlogged: true}
	reg := must(testenv.NewRegistry(testenv.RegistryOptions{Referrers: true}))(t)
	t.Cleanup(func() { _ = reg.Close() })
	client := must(registry.New(registry.Config{Hosts: map[string]registry.Host{reg.Host: {InsecureHTTP: true}}}))(t)
	set := must(verify.NewSet(verify.Config{Resolver: client, Revocations: new(verify.Revocations), Rules: []verify.Rule{{
		Name: "charts", Kind: verify.KindChart, Repositories: []string{reg.Host + "/charts/**"}, Environments: []string{"production"},
		Signers: []verify.Signer{signer}, Require: []verify.Requirement{{Signature: &verify.SignatureRequirement{}, Signers: []string{signer.Name}}},
	}}}, attest.Factory([]attest.Source{sigstore.Source(sigstore.NewStore(client))})))(t)
	judge := func(kind, ref string) error {
		_, _, err := set.Verify(t.Context(), "production", []verify.Subject{{Kind: kind, Reference: ref}})
		return err
	}
	const shop = `{"name":"shop","version":"1.2.3+build.7"}`
	push := func(ref, configType, config string, layers ...string) string {
		t.Helper()
		ref = reg.Host + "/charts/" + ref
		d := pushChart(t, ref, configType, config, layers...)
		pinned := ref[:strings.LastIndex(ref, ":")] + "@" + d.String()
		must(0, a.Sign(t.Context(), pinned, verifytest.SignOptions{Key: "release"}))(t)
		return pinned
	}
	good := push("shop:1.2.3_build.7", chartConfig, shop, chartContent, chartProof)
	tag := reg.Host + "/charts/shop:1.2.3_build.7"
	for _, ref := range []string{tag, good, tag + "@" + strings.Split(good, "@")[1]} {
		if err := judge(verify.KindChart, ref); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
	unsigned := pushChart(t, reg.Host+"/charts/none:1.0.0", chartConfig, `{"name":"none","version":"1.0.0"}`, chartContent)
	for what, c := range map[string]struct{ ref, want string }{
		"unsigned":              {reg.Host + "/charts/none@" + unsigned.String(), "no signature by a trusted identity"},
		"another name":          {push("other:1.2.3_build.7", chartConfig, shop, chartContent, chartProof), "calls itself shop"},
		"another version":       {strings.Split(push("shop:9.9.9", chartConfig, shop, chartContent), "@")[0] + ":9.9.9", "calls itself version 1.2.3+build.7"},
		"another version's tag": {reg.Host + "/charts/shop:1.2.4@" + strings.Split(good, "@")[1], "calls itself version 1.2.3+build.7"},
		"an image":              {push("image:1", "application/vnd.oci.image.config.v1+json", "{}", "application/vnd.oci.image.layer.v1.tar+gzip"), "its config is"},
		"no content":            {push("empty:1", chartConfig, `{"name":"empty","version":"1"}`, chartProof), "0 layers with content"},
		"two contents":          {push("two:1", chartConfig, `{"name":"two","version":"1"}`, chartContent, chartContent), "2 layers with content"},
		"something else in it":  {push("more:1", chartConfig, `{"name":"more","version":"1"}`, chartContent, "application/x"), `it has a layer "application/x"`},
		"no name":               {push("noname:1", chartConfig, `{"version":"1"}`, chartContent), "names no chart"},
		"no Chart.yaml":         {push("junk:1", chartConfig, `name: junk`, chartContent), "not a Chart.yaml"},
		"an odd name":           {push("odd:1", chartConfig, `{"name":"a/../odd","version":"1"}`, chartContent), "names no chart"},
	} {
		if err := judge(verify.KindChart, c.ref); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v (%v), want %q", what, err, fault.KindOf(err), c.want)
		}
	}
	index := must(verifytest.PushImage(t.Context(), reg.Host+"/charts/index:1", verifytest.ImageOptions{Platforms: []string{"linux/amd64"}}))(t)
	if err := judge(verify.KindChart, reg.Host+"/charts/index@"+index.String()); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "it is an index") {
		t.Errorf("an index: %v", err)
	}
}
