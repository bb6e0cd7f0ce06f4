// Package httpd owns how a listener of the daemon lives and ends.
//
// It guarantees that a server stops when its context does, and that requests
// that are under way then are cancelled, and have a bounded time to return. It refuses to choose limits:
// time-outs and sizes belong to whoever knows who is calling.
package httpd

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"
)

// grace is how long requests that are under way may take when the server stops.
const grace = 2 * time.Second

// Serve serves srv on l until ctx ends, and closes l. Requests have ctx as the
// parent of their own.
func Serve(ctx context.Context, srv *http.Server, l net.Listener) error {
	srv.BaseContext = func(net.Listener) context.Context { return ctx }
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := srv.Shutdown(ending); err != nil {
		return errors.Join(err, srv.Close())
	}
	return nil
}
