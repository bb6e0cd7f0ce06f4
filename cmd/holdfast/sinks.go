package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/reconciler"
)

// maskedLedger masks every secret that is known on its way into the ledger,
// whoever wrote the entry: a value that one object keeps secret may stand in
// another that does not. Policies judge what is declared: masked by value there,
// a Secret could hide what a rule looks for.
type maskedLedger struct {
	reconciler.Ledger
	scrub func(string) string
}

// Append implements [reconciler.Ledger].
func (l maskedLedger) Append(ctx context.Context, e ledger.Entry, bodies map[string][]byte) (ledger.Index, error) {
	e.Note = l.scrub(e.Note)
	masked := make(map[string][]byte, len(bodies))
	for role, body := range bodies {
		if role == "order" || role == "signature" { // as it was signed
			masked[role] = body
			continue
		}
		masked[role] = []byte(l.scrub(string(body)))
	}
	return l.Ledger.Append(ctx, e, masked)
}

// answer writes v as JSON, with every secret that is known masked.
func answer(w http.ResponseWriter, scrub func(string) string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "the answer is not JSON", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte(scrub(string(b)) + "\n")) // the client is gone
}

// masked returns r with every secret that is known masked, as it would come
// from a daemon.
func (r reply) masked(scrub func(string) string) (out reply, err error) {
	b, err := json.Marshal(r)
	if err == nil {
		err = json.Unmarshal([]byte(scrub(string(b))), &out)
	}
	if err != nil {
		return reply{}, fmt.Errorf("mask the answer: %w", err)
	}
	return out, nil
}
