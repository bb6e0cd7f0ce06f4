package fault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestError(t *testing.T) {
	t.Parallel()
	denied := New(Denied, "verify.Set", "sign it", "no signature: %w", io.EOF)
	for name, tc := range map[string]struct {
		err  error
		kind Kind
		hint string
		text string
	}{
		"new":              {denied, Denied, "sign it", "no signature: EOF"},
		"wrapped by fmt":   {fmt.Errorf("image: %w", denied), Denied, "sign it", "image: no signature: EOF"},
		"wrapped again":    {Wrap(Transient, "op", "other", denied), Denied, "sign it", "no signature: EOF"},
		"hint added":       {Wrap(Internal, "op", "look", New(Invalid, "", "", "bad")), Invalid, "look", "bad"},
		"joined":           {errors.Join(io.EOF, denied), Denied, "sign it", "EOF\nno signature: EOF"},
		"stack":            {WithStack("web", denied), Denied, "sign it", "web: no signature: EOF"},
		"stack only once":  {WithStack("web", WithStack("web", denied)), Denied, "sign it", "web: no signature: EOF"},
		"unclassified":     {io.EOF, Internal, "", "EOF"},
		"deadline":         {fmt.Errorf("get: %w", context.DeadlineExceeded), Transient, "", "get: context deadline exceeded"},
		"unclassified web": {WithStack("web", io.EOF), Internal, "", "web: EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if KindOf(tc.err) != tc.kind || HintOf(tc.err) != tc.hint || tc.err.Error() != tc.text {
				t.Errorf("kind %s, hint %q, text %q", KindOf(tc.err), HintOf(tc.err), tc.err)
			}
		})
	}
	if !errors.Is(WithStack("web", denied), io.EOF) || OpOf(fmt.Errorf("x: %w", denied)) != "verify.Set" {
		t.Error("the chain is broken")
	}
	if WithStack("web", nil) != nil || Wrap(Denied, "", "", nil) != nil {
		t.Error("nil became an error")
	}
}
