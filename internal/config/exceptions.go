package config

import (
	"fmt"

	"github.com/opencontainers/go-digest"
)

// Exceptions is a signed file of exceptions from trust rules.
type Exceptions struct {
	APIVersion string      `json:"apiVersion" jsonschema_description:"holdfast.dev/v1alpha1"`
	Kind       string      `json:"kind" jsonschema_description:"Exceptions"`
	Exceptions []Exception `json:"exceptions" jsonschema_description:"Each for one artifact."`
}

// Exception lets one artifact pass without some evidence, for a while.
type Exception struct {
	Digest       string   `json:"digest" jsonschema_description:"Digest of the artifact: sha256:…"`
	Environments []string `json:"environments" jsonschema_description:"Exact names."`
	Checks       []string `json:"checks" jsonschema_description:"Checks that may fail, as reports name them: sbom, provenance, test dast, …"`
	Reason       string   `json:"reason" jsonschema_description:"Why, for the auditor."`
	Until        *Date    `json:"until" jsonschema_description:"When it ends."`
}

// ParseExceptions decodes and checks a file of exceptions. name is for errors.
func ParseExceptions(name string, b []byte) (*Exceptions, error) {
	var x Exceptions
	d, err := decode(name, b, &x)
	if err != nil {
		return nil, err
	}
	c := checker{document: d}
	c.header(x.APIVersion, x.Kind, "Exceptions")
	for i, e := range x.Exceptions {
		at := fmt.Sprintf("$.exceptions[%d]", i)
		if _, err := digest.Parse(e.Digest); err != nil {
			c.wrong(at+".digest", "write the digest of the artifact, sha256:…", "%q is not a digest", e.Digest)
		}
		if len(e.Environments) == 0 || len(e.Checks) == 0 {
			c.wrong(at, "", "an exception names its environments and checks")
		}
		if e.Reason == "" || e.Until == nil {
			c.wrong(at, "", "an exception has a reason and an end")
		}
	}
	return &x, d.err()
}
