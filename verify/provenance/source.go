package provenance

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/holdfast-dev/holdfast/verify/intoto"
)

// source is one commit of a repository.
type source struct {
	repository string // normal form
	ref        string // refs/heads/main; empty where it is not said
	commit     string // hexadecimal
}

// String returns the source for people.
func (s source) String() string {
	text := intoto.Short(s.repository) + "@" + s.commit[:min(len(s.commit), 12)]
	if s.ref != "" {
		text += " (" + intoto.Short(s.ref) + ")"
	}
	return text
}

// claims are what provenance says of a build, beside who made it.
type claims struct {
	source
	trigger      string
	repositoryID string
	ownerID      string
	runner       string
	run          string // as a certificate names it; empty where it is not said
}

var commitID = regexp.MustCompile(`\A(?:[0-9a-f]{40}|[0-9a-f]{64})\z`)

// locate splits the URI of a Git source into repository and ref. The forms are
// those of SPDX ("git+https://host/repo@refs/heads/main") and of BuildKit
// ("https://host/repo.git#refs/heads/main:folder").
func locate(uri string) source {
	uri, fragment, _ := strings.Cut(uri, "#")
	ref, _, _ := strings.Cut(fragment, ":")
	if at := strings.Index(uri, "@refs/"); at >= 0 { // a tag may have another @
		uri, ref = uri[:at], uri[at+1:]
	} else if at := strings.LastIndex(uri, "@"); at > strings.LastIndex(uri, "/") && strings.Contains(uri[:at], "://") {
		uri, ref = uri[:at], uri[at+1:]
	}
	if commitID.MatchString(ref) {
		ref = "" // it is pinned, which says nothing of where it was found
	}
	return source{repository: normalRepository(uri), ref: ref}
}

// normalRepository returns a repository's URI as a certificate has it: without
// "git+" before and ".git" behind, scheme and host in lower case.
func normalRepository(uri string) string {
	uri = strings.TrimPrefix(uri, "git+")
	uri = strings.TrimSuffix(strings.TrimSuffix(uri, "/"), ".git")
	if m := scpForm.FindStringSubmatch(uri); m != nil {
		uri = "ssh://" + m[1] + "/" + m[2]
	}
	scheme, rest, ok := strings.Cut(uri, "://")
	if !ok {
		return uri
	}
	host, path, _ := strings.Cut(rest, "/")
	return strings.ToLower(scheme) + "://" + strings.ToLower(host) + "/" + path
}

// scpForm is how SSH users write a repository: git@host:owner/name.
var scpForm = regexp.MustCompile(`\A([A-Za-z0-9._-]+@[A-Za-z0-9.-]+):([^/].*)\z`)

// commit returns the commit of a dependency. GitLab's runner calls it sha256
// although it is Git's own.
func commit(d intoto.Descriptor) (string, error) {
	found := ""
	for _, alg := range []string{"gitCommit", "sha1", "sha256"} {
		sum := d.Digest[alg]
		if sum == "" {
			continue
		}
		if found != "" && found != sum {
			return "", fmt.Errorf("%q has two commits", intoto.Short(d.URI))
		}
		found = sum
	}
	if !commitID.MatchString(found) {
		return "", fmt.Errorf("%q has no commit", intoto.Short(d.URI))
	}
	return found, nil
}

// resolved returns the one commit of a repository that the build says it used.
func resolved(b *build, repository string) (source, error) {
	out := source{repository: repository}
	for _, d := range b.dependencies {
		s := locate(d.URI)
		if s.repository != repository {
			continue
		}
		id, err := commit(d)
		if err != nil {
			return out, err
		}
		if out.commit != "" && out.commit != id || out.ref != "" && s.ref != "" && out.ref != s.ref {
			return out, fmt.Errorf("it was built from two commits or refs of %q", intoto.Short(repository))
		}
		out.commit = id
		if s.ref != "" {
			out.ref = s.ref
		}
	}
	if out.commit == "" {
		return out, fmt.Errorf("no commit of the source %q is among what it was built from", intoto.Short(repository))
	}
	return out, nil
}

// sole returns the one Git source among the dependencies of a build that does not
// say which of them was built: of two, one might only have been used.
func sole(b *build) (source, error) {
	found := ""
	for _, d := range b.dependencies {
		if !isGit(d) {
			continue
		}
		at := locate(d.URI).repository
		if found != "" && found != at {
			return source{}, fmt.Errorf("it lists the sources %q and %q, and does not say which was built", intoto.Short(found), intoto.Short(at))
		}
		found = at
	}
	return declared(b, found, "")
}

func isGit(d intoto.Descriptor) bool {
	uri, _, _ := strings.Cut(d.URI, "#")
	return d.Digest["gitCommit"] != "" || strings.HasPrefix(uri, "git") || strings.HasPrefix(uri, "ssh://") || strings.HasSuffix(uri, ".git") || strings.Contains(uri, ".git@")
}

// declared completes the source that a build names by what it was resolved to.
// Both must say the same.
func declared(b *build, repository, ref string) (source, error) {
	if repository == "" {
		return source{}, errors.New("no source is named: was it built from a local folder?")
	}
	s, err := resolved(b, normalRepository(repository))
	if err != nil {
		return s, err
	}
	if ref != "" && s.ref != "" && ref != s.ref {
		return s, fmt.Errorf("the parameters name ref %q, the source is %q", intoto.Short(ref), intoto.Short(s.ref))
	}
	if s.ref == "" {
		s.ref = ref
	}
	return s, nil
}
