package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/forge"
	"github.com/holdfast-dev/holdfast/internal/notify"
	"github.com/holdfast-dev/holdfast/reconciler"
)

func TestNotification(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		event    reconciler.Event
		told     bool
		class    notify.Class
		severity notify.Severity
		title    string
	}{
		"applied":        {reconciler.Event{Type: reconciler.EventApplied, Stack: "web"}, false, "", "", ""},
		"denied":         {reconciler.Event{Type: reconciler.EventDenied, Stack: "web", Kind: fault.Denied}, true, notify.Denied, notify.Warning, "Denied: web"},
		"failed":         {reconciler.Event{Type: reconciler.EventFailed, Stack: "web", Kind: fault.Transient}, true, notify.Failed, notify.Warning, "Failed: web"},
		"our bug":        {reconciler.Event{Type: reconciler.EventFailed, Stack: "web", Kind: fault.Internal}, true, notify.Failed, notify.Critical, "Failed: web"},
		"held":           {reconciler.Event{Type: reconciler.EventHeld, Stack: "web", Kind: fault.Waiting}, true, notify.Held, notify.Warning, "Held: web"},
		"drift":          {reconciler.Event{Type: reconciler.EventDrift, Stack: "web", Object: "Deployment/a/b", Class: "modified"}, true, notify.Drift, notify.Warning, "Drift: web"},
		"sidecar":        {reconciler.Event{Type: reconciler.EventDrift, Stack: "web", Object: "Deployment/a/b", Class: "foreign"}, true, notify.Drift, notify.Critical, "Drift: web"},
		"reverted":       {reconciler.Event{Type: reconciler.EventReverted, Stack: "web", Object: "Deployment/a/b", Resolved: true}, true, notify.Drift, notify.Info, "Drift ended: web"},
		"recovered":      {reconciler.Event{Type: reconciler.EventRecovered, Stack: "web", Resolved: true}, true, notify.Recovered, notify.Info, "Recovered: web"},
		"revoked":        {reconciler.Event{Type: reconciler.EventRevoked, Stack: "web"}, true, notify.Revoked, notify.Critical, "Revoked: web"},
		"refused source": {reconciler.Event{Type: reconciler.EventSource, Repository: "shop", Kind: fault.Denied}, true, notify.Source, notify.Critical, "Refused or unreachable: repository shop"},
		"source away":    {reconciler.Event{Type: reconciler.EventSource, Repository: "shop", Kind: fault.Transient}, true, notify.Source, notify.Warning, "Refused or unreachable: repository shop"},
		"source back":    {reconciler.Event{Type: reconciler.EventSource, Repository: "shop", Resolved: true}, true, notify.Source, notify.Info, "Recovered: repository shop"},
		"ledger":         {reconciler.Event{Type: reconciler.EventLedger}, true, notify.Ledger, notify.Critical, "Not recorded: the ledger"},
	} {
		n, told := notification(c.event)
		if told != c.told || told && (n.Class != c.class || n.Severity != c.severity || n.Title != c.title || n.Resolved != c.event.Resolved) {
			t.Errorf("%s: told %t: %+v", name, told, n)
		}
	}
}

// What the configuration promises is what the door asks for.
func TestWebhookSecretLength(t *testing.T) {
	t.Parallel()
	schema, err := config.Schema("operator")
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("at least %d bytes", forge.MinSecret); !strings.Contains(string(schema), want) {
		t.Errorf("the configuration does not say that a webhook's secret has %s", want)
	}
}
