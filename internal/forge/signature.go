package forge

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Provider is a kind of forge.
type Provider string

// The providers.
const (
	GitHub    Provider = "github"
	GitLab    Provider = "gitlab"
	Gitea     Provider = "gitea"
	Forgejo   Provider = "forgejo"
	Bitbucket Provider = "bitbucket"
)

// checker reports whether a request was made by whoever knows secret. It reads
// the whole body whatever the header says, so that its time tells nothing. An
// error is one of reading.
type checker func(header http.Header, secret []byte, body io.Reader) (bool, error)

// checkers lists how each forge signs.
//
//   - GitHub: https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries.
//     X-Hub-Signature, with SHA-1, is not looked at.
//   - Gitea: https://docs.gitea.com/usage/webhooks
//   - Forgejo: https://forgejo.org/docs/latest/user/webhooks/
//   - Bitbucket: https://support.atlassian.com/bitbucket-cloud/docs/manage-webhooks/
//   - GitLab: https://docs.gitlab.com/user/project/integrations/webhooks/
func checkers() map[Provider]checker {
	return map[Provider]checker{
		GitHub:    signed("X-Hub-Signature-256"),
		Gitea:     signed("X-Gitea-Signature", "X-Hub-Signature-256"),
		Forgejo:   signed("X-Forgejo-Signature", "X-Gitea-Signature", "X-Hub-Signature-256"),
		Bitbucket: signed("X-Hub-Signature"),
		GitLab:    gitlab,
	}
}

// signed checks HMAC-SHA-256 over the raw body. The first of names that a
// request has decides; a wrong one is not made good by another.
func signed(names ...string) checker {
	return func(header http.Header, secret []byte, body io.Reader) (bool, error) {
		mac := hmac.New(sha256.New, secret)
		if _, err := io.Copy(mac, body); err != nil {
			return false, err
		}
		for _, name := range names {
			if text, ok := only(header, name); ok {
				got := decodeHex(text, strings.HasPrefix(name, "X-Hub-"))
				return hmac.Equal(got, mac.Sum(nil)), nil
			}
		}
		return false, nil
	}
}

// only returns the value of a header. One that is there twice is as good as
// empty: proxies and servers disagree about which of them counts.
func only(header http.Header, name string) (value string, ok bool) {
	values := header.Values(name)
	if len(values) == 1 {
		value = values[0]
	}
	return value, len(values) > 0
}

// decodeHex returns the bytes of a signature, or nil, which equals none.
func decodeHex(text string, prefixed bool) []byte {
	if prefixed {
		var ok bool
		if text, ok = strings.CutPrefix(text, "sha256="); !ok {
			return nil
		}
	}
	b, err := hex.DecodeString(text)
	if err != nil {
		return nil
	}
	return b
}

const (
	// signingPrefix begins a signing token of GitLab. One that has it is never
	// sent, so X-Gitlab-Token counts for nothing then.
	signingPrefix = "whsec_"
	// maxAge is how old or how far ahead a signed timestamp may be.
	maxAge = 5 * time.Minute
)

// gitlab checks GitLab's signing token or, for hooks that have none, the secret
// token, which GitLab sends as it is.
func gitlab(header http.Header, secret []byte, body io.Reader) (bool, error) {
	if key, ok := strings.CutPrefix(string(secret), signingPrefix); ok {
		return standardWebhook(header, key, body)
	}
	// Hashed for nothing: who may not know which repositories there are must not
	// learn it from the time either.
	if _, err := io.Copy(hmac.New(sha256.New, secret), body); err != nil {
		return false, err
	}
	token, _ := only(header, "X-Gitlab-Token")
	// Equal digests compare in constant time whatever the length of the token.
	got, want := sha256.Sum256([]byte(token)), sha256.Sum256(secret)
	return hmac.Equal(got[:], want[:]), nil
}

// standardWebhook checks a signature by the Standard Webhooks specification:
// HMAC-SHA-256 over "id.timestamp.body" in base64, one of several after "v1,".
//
// https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
func standardWebhook(header http.Header, key string, body io.Reader) (bool, error) {
	raw, usable := signingKey(key)
	id, _ := only(header, "Webhook-Id")
	timestamp, _ := only(header, "Webhook-Timestamp")
	mac := hmac.New(sha256.New, raw)
	mac.Write([]byte(id + "." + timestamp + "."))
	if _, err := io.Copy(mac, body); err != nil {
		return false, err
	}
	want := mac.Sum(nil)
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	age := time.Since(time.Unix(seconds, 0)).Abs()
	fresh := err == nil && age <= maxAge
	signatures, _ := only(header, "Webhook-Signature")
	match := false
	for s := range strings.FieldsSeq(signatures) {
		text, ok := strings.CutPrefix(s, "v1,")
		got, err := base64.StdEncoding.DecodeString(text)
		match = match || ok && err == nil && hmac.Equal(got, want)
	}
	return usable && fresh && id != "" && match, nil
}

// signingKey decodes a signing token's part after [signingPrefix].
func signingKey(text string) (key []byte, ok bool) {
	key, err := base64.StdEncoding.DecodeString(text)
	return key, err == nil && len(key) >= MinSecret
}

// pushed reports whether a request is about a push. Another event is not worth a
// look. The header is not signed, and need not be: it only says no.
func (p Provider) pushed(header http.Header) bool {
	name, events := map[Provider]string{
		GitHub: "X-GitHub-Event", GitLab: "X-Gitlab-Event", Gitea: "X-Gitea-Event", Forgejo: "X-Forgejo-Event", Bitbucket: "X-Event-Key",
	}[p], []string{"push", "Push Hook", "System Hook", "repo:push", "repo:refs_changed"}
	event := header.Get(name)
	if event == "" && p == Forgejo {
		event = header.Get("X-Gitea-Event")
	}
	for _, e := range events {
		if e == event {
			return true
		}
	}
	return event == "" // it does not say: look
}
