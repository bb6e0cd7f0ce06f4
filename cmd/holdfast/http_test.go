package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

// The status is for this machine, under a name of this machine: a web page whose
// own name resolves to 127.0.0.1 must not read it.
func TestLoopback(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]bool{
		"127.0.0.1:8321": true, "127.0.0.1": true, "localhost:8321": true, "[::1]:8321": true, "127.8.8.8:1": true,
		"evil.example:8321": false, "10.0.0.1:8321": false, "": false, "localhost.evil.example": false, "0.0.0.0:1": false,
	} {
		if got := loopback(addr); got != want {
			t.Errorf("loopback(%q) = %t", addr, got)
		}
	}
}

func TestStatusRefusesStrangers(t *testing.T) {
	t.Parallel()
	h := (&app{}).publicHandler() // refused before anything is asked
	for name, change := range map[string]func(*http.Request){
		"another machine": func(r *http.Request) { r.RemoteAddr, r.Host = "192.0.2.1:1234", "localhost" },
		"rebound name":    func(r *http.Request) { r.RemoteAddr, r.Host = "127.0.0.1:1234", "evil.example" },
	} {
		r := httptest.NewRequest(http.MethodGet, "/v1/status", nil)
		change(r)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusForbidden {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/apply", nil))
	if w.Code != http.StatusNotFound && w.Code != http.StatusMethodNotAllowed {
		t.Errorf("the public listener changes things: %d", w.Code)
	}
}

func TestReplyErrorKeepsItsKind(t *testing.T) {
	t.Parallel()
	for _, k := range []fault.Kind{fault.Internal, fault.Transient, fault.Waiting, fault.Denied, fault.Invalid} {
		err := newReplyError(fault.New(k, "op", "do this", "because"), asIs).err()
		if fault.KindOf(err) != k || fault.HintOf(err) != "do this" || err.Error() != "because" {
			t.Errorf("%s became %s: %v", k, fault.KindOf(err), err)
		}
	}
	var none *replyError
	if none.err() != nil {
		t.Error("no error became one")
	}
}

func TestMergeData(t *testing.T) {
	t.Parallel()
	into := map[string]any{}
	a := map[string]any{"params": map[string]any{"images": map[string]any{"registries": []any{"a/"}}}}
	b := map[string]any{"params": map[string]any{"protected": map[string]any{"types": []any{"x"}}}}
	for _, from := range []map[string]any{a, b} {
		if err := mergeData(into, from, "data"); err != nil {
			t.Fatal(err)
		}
	}
	if p := into["params"].(map[string]any); len(p) != 2 {
		t.Errorf("%v", into)
	}
	if len(a["params"].(map[string]any)) != 1 {
		t.Error("merging changed the configuration")
	}
	if err := mergeData(into, a, "data"); err == nil || err.Error() != "data.params.images.registries is set twice" {
		t.Errorf("got %v", err)
	}
}

// pipes is a listener without a network.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// Strangers cannot take all descriptors of the daemon, nor keep those they got.
func TestPublicConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		served := make(chan error, 1)
		go func() { served <- servePublic(ctx, l, http.NotFoundHandler()) }()
		const over = 10
		var mu sync.Mutex
		accepted, ended := 0, 0
		for range publicConnections + over {
			mine, its := net.Pipe()
			go func() {
				select {
				case l.conns <- its:
				case <-l.done:
					return
				}
				mu.Lock()
				accepted++
				mu.Unlock()
				_, _ = io.WriteString(mine, "GET / HTTP/1.1\r\n") // and nothing more, ever
				_, _ = io.Copy(io.Discard, mine)
				mu.Lock()
				ended++
				mu.Unlock()
			}()
		}
		synctest.Wait()
		mu.Lock()
		if accepted != publicConnections || ended != 0 {
			t.Errorf("%d accepted, %d ended", accepted, ended)
		}
		mu.Unlock()
		time.Sleep(time.Minute) // of the bubble's
		mine, its := net.Pipe()
		l.conns <- its
		if _, err := io.WriteString(mine, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		begin := time.Now() // whoever is answered keeps no place either
		if answer, err := io.ReadAll(mine); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 404") || time.Since(begin) > 0 {
			t.Errorf("%q after %s, %v", answer, time.Since(begin), err)
		}
		mu.Lock()
		if accepted != publicConnections+over || ended != accepted {
			t.Errorf("a minute later %d accepted, %d ended", accepted, ended)
		}
		mu.Unlock()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}
