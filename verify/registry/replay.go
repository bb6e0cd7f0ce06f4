package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/verify"
)

// What was asked of a registry and what it answered is noted where a verification is
// to be replayed ([verify.Collect]), as "GET REPOSITORY/manifests/REFERENCE": what
// was checked, not what was on the wire. Pages of a list are one answer.

const (
	manifestAt  = "manifests"
	blobAt      = "blobs"
	referrersAt = "referrers"
)

func question(method, repo, at, id string) string { return method + " " + repo + "/" + at + "/" + id }

func collect(ctx context.Context, at, repo, id string, d digest.Digest, b []byte) {
	verify.Collecting(ctx).AddDigest(question(http.MethodGet, repo, at, id), d, b)
}

func collectNone(ctx context.Context, at, repo, id string) {
	verify.Collecting(ctx).None(question(http.MethodGet, repo, at, id))
}

// collectHead notes what the registry said a reference stands for.
func collectHead(ctx context.Context, repo, id string, d digest.Digest) {
	verify.Collecting(ctx).Add(question(http.MethodHead, repo, manifestAt, id), []byte(d))
}

func collectList(ctx context.Context, repo string, d digest.Digest, list []v1.Descriptor) {
	a := verify.Collecting(ctx)
	if a == nil {
		return
	}
	if list == nil {
		list = []v1.Descriptor{}
	}
	b, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": types.OCIImageIndex, "manifests": list})
	if err == nil { // descriptors come from JSON and go back to it; without the answer a replay says that it is not there
		a.Add(question(http.MethodGet, repo, referrersAt, d.String()), b)
	}
}

// Replay returns a Client that asks nobody: it gives the answers of in again, and
// checks them as if they came from a registry. What was not asked then is an error.
func Replay(in verify.Inputs) *Client {
	return &Client{hosts: map[string]*host{}, cache: map[digest.Digest][]byte{}, past: &past{in}}
}

// past is the registries as one verification found them.
type past struct{ in verify.Inputs }

func (p *past) answer(method string, r name.Repository, path string) (*http.Response, error) {
	at, id, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	q := question(method, r.Name(), at, id)
	b, there, err := p.in.Answer(q)
	if err == nil && !there {
		err = fmt.Errorf("%s: %w", q, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	// What it was read as then was checked then: it is a manifest or a list.
	header := http.Header{"Content-Type": {string(types.OCIManifestSchema1)}}
	if at == referrersAt {
		header.Set("Content-Type", string(types.OCIImageIndex))
	}
	if method == http.MethodHead {
		header.Set("Docker-Content-Digest", string(b))
		b = nil
	}
	return &http.Response{
		StatusCode: http.StatusOK, Header: header, Body: io.NopCloser(bytes.NewReader(b)), ContentLength: int64(len(b)),
		Request: &http.Request{Method: method, URL: &url.URL{Scheme: "past", Host: r.RegistryStr(), Path: "/v2/" + r.RepositoryStr() + path}},
	}, nil
}
