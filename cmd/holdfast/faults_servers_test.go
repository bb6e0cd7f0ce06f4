package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/internal/world"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/reconciler"
)

// settings commits release v of the settings alone, which need no image.
func (f *faulty) settings(v string) {
	f.t.Helper()
	f.commit(map[string]string{settingsFile: strings.NewReplacer("log-level: info", "log-level: \""+v+"\"", "battery-staple", "battery-staple-"+v).Replace(f.files[settingsFile])})
}

// TestGitFaults: whatever the Git server does, the repository says so, what was
// verified last goes on being enforced, and the newest commit is taken afterwards.
func TestGitFaults(t *testing.T) {
	t.Parallel()
	f := newFaulty(t)
	git := f.w.GitFaults
	f.start()
	f.converged()

	pack := func(r *http.Request) bool { return r.Method == http.MethodPost }
	bare := f.w.Git.Path("shop")
	for i, c := range []struct {
		name    string
		begin   func()
		end     func() // nil: the fault is taken away
		message string // empty: the daemon waits for an answer and has nothing to say yet
	}{
		{name: "down", begin: git.Down, end: git.Up, message: `EOF|reset`},
		{name: "5xx", begin: func() { git.Set(testenv.Fault{Status: 503}) }, message: `503`},
		{name: "429", begin: func() { git.Set(testenv.Fault{Status: 429}) }, message: `429`},
		{name: "401 after success", begin: func() { git.Set(testenv.Fault{Status: 401}) }, message: `refuses the credentials`},
		{name: "silent", begin: func() { git.Set(testenv.Fault{Delay: testenv.Hang}) }, end: func() { git.Set(testenv.Fault{}); git.Break() }},
		{name: "cut in a pack", begin: func() { git.Set(testenv.Fault{CutAfter: 60, Match: pack}) }, message: `EOF`},
		{name: "damaged pack", begin: func() { git.Set(testenv.Fault{Corrupt: true, Match: pack}) }, message: `.`},
		{name: "elsewhere", begin: func() { git.Set(testenv.Fault{Rewrite: elsewhere}) }, message: `redirects to another host`},
		{
			name:    "branch gone",
			begin:   func() { f.git("--git-dir", bare, "update-ref", "-d", "refs/heads/main") },
			end:     func() { f.git("push", "-q", "origin", "HEAD") },
			message: `branch main does not exist`,
		},
		{
			name:    "rewritten to the past",
			begin:   func() { f.git("push", "-q", "--force", "origin", "HEAD~3:main") },
			end:     func() { f.git("push", "-q", "origin", "HEAD") },
			message: `does not descend|back|forward|behind`,
		},
	} {
		ok := t.Run(c.name, func(t *testing.T) {
			f.t = t
			before, version := f.logLevel(), fmt.Sprintf("3.%d", i)
			if c.name == "rewritten to the past" {
				f.settings(version)
				f.converged()
				before = version
				c.begin()
			} else {
				c.begin()
				f.settings(version)
				if c.name == "branch gone" { // the push brought it back
					c.begin()
				}
			}
			if c.message == "" {
				f.eventually("the daemon's question", func() bool { return git.Matches() > 0 })
			} else {
				f.repositorySays(c.message)
			}
			f.tamper("debug")
			f.eventually("the repair", func() bool { return f.logLevel() == before })
			if c.end != nil {
				c.end()
			}
			git.Set(testenv.Fault{})
			f.converged()
			if got := f.logLevel(); got != version {
				t.Errorf("after the fault the settings are of release %s, want %s", got, version)
			}
		})
		if !ok {
			break
		}
	}
	f.t = t
	t.Run("slow", func(t *testing.T) {
		f.t = t
		git.Set(testenv.Fault{Trickle: 2000})
		f.settings("slow")
		f.converged()
		git.Set(testenv.Fault{})
	})
	f.t = t
	f.sound()
}

func (f *faulty) git(args ...string) {
	f.t.Helper()
	_, err := f.w.Repo.Git(args...)
	must(f.t, err)
}

// elsewhere sends the client to another host.
func elsewhere(r *http.Response) error {
	r.StatusCode, r.Status = http.StatusFound, "302 Found"
	r.Header.Set("Location", "http://127.0.0.2:9"+r.Request.URL.RequestURI())
	return nil
}

// dryRun, isWrite and settingsWrite match what the daemon sends to the API server to plan and to
// apply its objects.
func dryRun(r *http.Request) bool {
	return r.Method == http.MethodPatch && r.URL.Query().Has("dryRun")
}

func isWrite(r *http.Request) bool {
	return r.Method == http.MethodPatch && !r.URL.Query().Has("dryRun")
}

func settingsWrite(r *http.Request) bool {
	return isWrite(r) && strings.Contains(r.URL.Path, "/shop-se")
}

// TestAPIServerFaults: whatever the API server does, in the middle of an apply
// too, the stack says so and converges afterwards, and no intent stays open.
func TestAPIServerFaults(t *testing.T) {
	t.Parallel()
	f := newFaulty(t)
	api := f.w.ClusterFaults
	f.start()
	f.converged()

	for i, c := range []struct {
		name    string
		fault   testenv.Fault
		then    func() // once the fault has met a request
		end     func()
		message string
	}{
		{
			name:  "restarted in mid-apply",
			fault: testenv.Fault{Match: settingsWrite, Skip: 1, Delay: testenv.Hang}, // the first object is written
			then:  api.Down, end: api.Up, message: `EOF|reset|refused`,
		},
		{name: "answer to a write lost", fault: testenv.Fault{Match: settingsWrite, CutAfter: -1}, message: `EOF|reset`},
		{name: "5xx", fault: testenv.Fault{Status: 500}, message: `500|unable to handle|unknown`},
		{name: "5xx for writes", fault: testenv.Fault{Match: settingsWrite, Status: 503}, message: `.`},
		{name: "429", fault: testenv.Fault{Match: dryRun, Status: 429}, message: `(?i)429|too many`},
		{name: "401 after success", fault: testenv.Fault{Status: 401}, message: `(?i)unauthorized|credential`},
		{name: "cut", fault: testenv.Fault{CutAfter: 10, Match: dryRun}, message: `EOF|reset`},
		{name: "not JSON", fault: testenv.Fault{Rewrite: page, Corrupt: true, Match: dryRun}, message: `.`},
		{name: "certificate expired", then: func() { must(t, api.Certify(time.Now().Add(-time.Hour))) },
			end: func() { must(t, api.Certify(time.Now().Add(time.Hour))) }, message: `certificate has expired`},
	} {
		ok := t.Run(c.name, func(t *testing.T) {
			f.t = t
			version := fmt.Sprintf("4.%d", i)
			api.Set(c.fault)
			if c.name == "certificate expired" {
				c.then()
			}
			f.settings(version)
			if c.fault.Skip > 0 {
				f.eventually("the second write", func() bool { return api.Matches() > c.fault.Skip })
				c.then()
			}
			f.says("shop-settings", c.message, reconciler.Failed)
			api.Set(testenv.Fault{})
			if c.end != nil {
				c.end()
			}
			f.converged()
			if got := f.logLevel(); got != version {
				t.Errorf("after the fault the settings are of release %s, want %s", got, version)
			}
			f.tamper("debug") // the watches are back as well
			f.eventually("the repair", func() bool { return f.logLevel() == version })
		})
		if !ok {
			break
		}
	}
	f.t = t
	t.Run("slow", func(t *testing.T) {
		f.t = t
		api.Set(testenv.Fault{Delay: 300 * time.Millisecond})
		f.settings("slow")
		f.converged()
		api.Set(testenv.Fault{})
	})
	f.t = t
	f.sound()
}

// TestKilledAtEachStage freezes the daemon in one stage of the pipeline after
// the other, by a server that does not answer, and kills it there.
func TestKilledAtEachStage(t *testing.T) {
	t.Parallel()
	f := newFaulty(t)
	f.start()
	f.converged()

	for i, c := range []struct {
		stage string
		proxy *testenv.FaultProxy
		match func(*http.Request) bool
		skip  int
	}{
		{stage: "head", proxy: f.w.GitFaults},
		{stage: "fetch", proxy: f.w.GitFaults, match: func(r *http.Request) bool { return r.Method == http.MethodPost }},
		{stage: "resolve", proxy: f.w.RegistryFaults, match: func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/5.") }},
		{stage: "verify", proxy: f.w.RegistryFaults, match: referrers},
		{stage: "plan", proxy: f.w.ClusterFaults, match: dryRun},
		{stage: "apply, before the first write", proxy: f.w.ClusterFaults, match: settingsWrite},
		{stage: "apply, after the first write", proxy: f.w.ClusterFaults, match: settingsWrite, skip: 1},
	} {
		ok := t.Run(c.stage, func(t *testing.T) {
			f.t = t
			version := fmt.Sprintf("5.%d", i)
			c.proxy.Set(testenv.Fault{Delay: testenv.Hang, Match: c.match, Skip: c.skip})
			f.publish(version, "signed")
			f.commit(map[string]string{
				settingsFile:   strings.NewReplacer("log-level: info", "log-level: \""+version+"\"", "battery-staple", "battery-staple-"+version).Replace(f.files[settingsFile]),
				deploymentFile: strings.Replace(f.files[deploymentFile], "web:1.0", "web:"+version, 1),
			})
			f.eventually("the stage "+c.stage, func() bool { return c.proxy.Matches() > c.skip })
			f.kill()
			c.proxy.Set(testenv.Fault{})
			f.start()
			f.converged()
			if got := f.logLevel(); got != version {
				t.Errorf("the settings are of release %s, want %s", got, version)
			}
		})
		if !ok {
			break
		}
	}
	f.t = t
	f.sound()
	abandoned := 0
	for _, e := range f.entries(f.w.StateDir) {
		if e.Type == ledger.Applied && e.Outcome == "abandoned" {
			abandoned++
		}
	}
	if abandoned < 2 {
		t.Errorf("%d intents were closed as abandoned, want at least those of the two applies", abandoned)
	}
}

// TestKilledInARepair: a repair leads back to what was granted, so a crash in
// the middle of one leaves nothing to judge: it is finished after the restart,
// also while neither Git nor the registry answers.
func TestKilledInARepair(t *testing.T) {
	t.Parallel()
	f := newFaulty(t)
	f.start()
	f.converged()
	level, image := f.logLevel(), f.image()
	web := func(r *http.Request) bool { return isWrite(r) && strings.HasSuffix(r.URL.Path, "/web") }
	for _, c := range []struct {
		match  func(*http.Request) bool
		tamper func()
	}{{settingsWrite, func() { f.tamper("debug") }}, {web, func() { f.scale(0) }}} {
		f.w.ClusterFaults.Set(testenv.Fault{Delay: testenv.Hang, Match: c.match})
		c.tamper()
		f.eventually("the repair", func() bool { return f.w.ClusterFaults.Matches() > 0 })
		f.kill()
		f.w.ClusterFaults.Set(testenv.Fault{})
		f.w.GitFaults.Down()
		f.w.RegistryFaults.Down()
		f.start()
		f.eventually("the repair after the restart", func() bool { return f.logLevel() == level && f.replicas() == 2 })
		f.w.GitFaults.Up()
		f.w.RegistryFaults.Up()
	}
	f.converged()
	if got := f.image(); got != image {
		t.Errorf("the image is %s, want %s", got, image)
	}
	f.sound()
}

// TestRestartWithARefusedCommit: what was granted last goes on being enforced
// while the newest commit is refused or cannot be looked at, over a restart too.
func TestRestartWithARefusedCommit(t *testing.T) {
	t.Parallel()
	f := newFaulty(t)
	f.start()
	f.converged()
	image := f.image()
	repaired := func() {
		t.Helper()
		f.scale(0)
		f.eventually("the repair", func() bool { return f.replicas() == 2 })
		if got := f.image(); got != image {
			t.Errorf("the image is %s, want %s", got, image)
		}
	}
	f.publish("2.0", world.Unsigned)
	f.declare("2.0")
	f.says("shop-web", "no signature", reconciler.Denied)
	repaired()
	must(t, f.d.Stop())
	f.start()
	f.says("shop-web", "no signature", reconciler.Denied)
	repaired()

	f.w.RegistryFaults.Down()
	f.kill()
	f.start()
	f.says("shop-web", "EOF|reset", reconciler.Failed)
	repaired()
	f.w.RegistryFaults.Up()
	f.release("2.1")
	f.converged()
	f.sound()
}
