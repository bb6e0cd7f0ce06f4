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

// Evidence that expires is kept again and again.
func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	s := &Set{cache: map[cacheKey]Evidence{}}
	key := func(i int) cacheKey { return cacheKey{subject: digest.FromString(fmt.Sprint(i))} }
	for range 3 {
		s.store(key(0), Evidence{})
	}
	if len(s.order) != 1 {
		t.Errorf("one entry has %d places", len(s.order))
	}
	for i := range maxCached + 100 {
		s.store(key(i), Evidence{})
	}
	if len(s.cache) != maxCached || len(s.order) != maxCached {
		t.Errorf("%d entries in %d places", len(s.cache), len(s.order))
	}
}

func TestPinned(t *testing.T) {
	t.Parallel()
	s := Subject{Reference: "r/web:1", Name: "r/web"}
	if got := s.Pinned(); got != s.Reference {
		t.Errorf("unresolved: %s", got)
	}
	s.Digest = digest.FromString("web")
	if got := s.Pinned(); got != "r/web@"+s.Digest.String() {
		t.Errorf("resolved: %s", got)
	}
}
