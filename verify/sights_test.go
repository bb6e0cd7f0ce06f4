package verify

import (
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestSightsAreBounded(t *testing.T) {
	t.Parallel()
	var s sights
	key := func(i int) cacheKey { return cacheKey{subject: digest.FromString(fmt.Sprint(i))} }
	start := time.Now()
	for i := range maxSights + 100 {
		s.see(key(i), start)
	}
	if len(s.first) != maxSights || len(s.order) != maxSights {
		t.Errorf("%d sights in %d places", len(s.first), len(s.order))
	}
	if got := s.see(key(maxSights+99), start.Add(time.Hour)); !got.Equal(start) {
		t.Error("the last sight was forgotten")
	}
	for i := range maxSights { // verified, and seen again, over and over
		s.forget(key(maxSights))
		s.see(key(maxSights), start.Add(time.Duration(i)))
	}
	if len(s.order) > maxSights {
		t.Errorf("%d places", len(s.order))
	}
}
