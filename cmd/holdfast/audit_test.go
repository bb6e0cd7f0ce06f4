package main

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/reconciler"
	"github.com/holdfast-dev/holdfast/targets/kubernetes"
)

func TestAuditEndpoint(t *testing.T) {
	t.Parallel()
	const token = "correct-horse-battery-staple"
	const event = `{"kind":"Event","apiVersion":"audit.k8s.io/v1","stage":"ResponseComplete","verb":"patch","user":{"username":"carol"},
		"objectRef":{"resource":"configmaps","namespace":"shop","name":"a"},"responseStatus":{"code":200},"stageTimestamp":"2026-06-01T12:00:00Z"}`
	for name, tc := range map[string]struct {
		header, body string
		token        error
		want         int
	}{
		"an event":          {"Bearer " + token, event, nil, http.StatusOK},
		"a list":            {"Bearer " + token, `{"kind":"EventList","items":[` + event + `]}`, nil, http.StatusOK},
		"no token":          {"", event, nil, http.StatusUnauthorized},
		"another token":     {"Bearer " + token + "x", event, nil, http.StatusUnauthorized},
		"another scheme":    {"Basic " + token, event, nil, http.StatusUnauthorized},
		"no token is known": {"Bearer ", event, errors.New("the file is gone"), http.StatusUnauthorized},
		"no event":          {"Bearer " + token, "{}", nil, http.StatusBadRequest},
		"too much":          {"Bearer " + token, strings.Repeat(" ", maxAuditBody+1), nil, http.StatusRequestEntityTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := &app{log: slog.New(slog.DiscardHandler), reconciler: &reconciler.Reconciler{}}
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/audit/production", strings.NewReader(tc.body))
			r.Header.Set("Authorization", tc.header)
			w := httptest.NewRecorder()
			a.audit(w, r, &kubernetes.Audit{}, func() (string, error) {
				if tc.token != nil {
					return "", tc.token
				}
				return token, nil
			})
			if w.Code != tc.want {
				t.Errorf("answered %d: %s", w.Code, w.Body)
			}
		})
	}
}
