package kubernetes

import (
	"context"
	"io"
	"net/http"
	"time"
)

// requestTimeout bounds one request, its body included. The API server itself
// gives up after a minute, so what takes longer has lost its server.
const requestTimeout = 90 * time.Second

// bounded ends requests that nobody answers. Without it a server that is silent,
// which is not the same as gone, holds a stack and its worker for good. Watches
// are meant to last, and have a time-out of their own.
type bounded struct {
	next    http.RoundTripper
	timeout time.Duration
}

// RoundTrip implements [http.RoundTripper].
func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Query().Has("watch") {
		return b.next.RoundTrip(req)
	}
	ctx, cancel := context.WithTimeout(req.Context(), b.timeout)
	resp, err := b.next.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel()
		return nil, err
	}
	resp.Body = &boundedBody{ReadCloser: resp.Body, cancel: cancel}
	return resp, nil
}

// boundedBody frees the timer of its request when it is closed.
type boundedBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

// Close implements [io.Closer].
func (b *boundedBody) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}
