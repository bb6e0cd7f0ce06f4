package drift

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// A fight is somebody, mostly a controller, who changes the same fields of an object
// again and again, however often they are reverted. Neither side wins one, and both
// load the API server. So it is noticed, told of with a name, and reverted at a
// growing distance; it is over when the other side has been quiet for a while.
const (
	fightFlips  = 10               // reverts of the same …
	fightWithin = time.Minute      // … within this time are a fight
	fightQuiet  = 15 * time.Minute // without a flip it is over
	fightFirst  = 2 * time.Second  // distance of two reverts, doubled with each
	fightMost   = 5 * time.Minute
	// fightClosed is the greatest distance for what somebody added, for new images and for
	// what else makes a pod: to start a fight is no way to have them stay.
	fightClosed = 10 * time.Second
	maxFights   = 4096
)

// Fights notices fights. It is safe for concurrent use; its zero value is ready.
type Fights struct {
	mu sync.Mutex
	m  map[plan.ObjectID]map[string]*fight
}

type fight struct {
	flips  []time.Time // the newest that were reverted, at most fightFlips
	seen   time.Time   // the newest flip
	rounds int         // reverts since it was noticed
	next   time.Time   // not reverted before
}

// Revert notes that f asks to be reverted. It returns how long to wait before that
// is done, zero for not at all, and whether this is the moment in which a fight was
// noticed.
func (fs *Fights) Revert(f targets.Finding, now time.Time) (wait time.Duration, noticed bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	x := fs.about(f)
	if now.Sub(x.seen) > fightQuiet {
		*x = fight{}
	}
	x.seen = now
	if wait := x.next.Sub(now); wait > 0 {
		return wait, false
	}
	x.flips = append(x.flips, now)
	if len(x.flips) > fightFlips {
		x.flips = slices.Delete(x.flips, 0, len(x.flips)-fightFlips)
	}
	if x.rounds == 0 && (len(x.flips) < fightFlips || now.Sub(x.flips[0]) > fightWithin) {
		return 0, false
	}
	x.rounds++
	most := fightMost
	if closed(f) || slices.ContainsFunc(f.Fields, func(field plan.Field) bool { return strings.Contains(field.Path, "/spec/template/") }) {
		most = fightClosed
	}
	x.next = now.Add(min(fightFirst<<min(x.rounds-1, 16), most))
	return 0, x.rounds == 1
}

// about returns what is known about f: the same fields of the same object. The caller
// holds mu.
func (fs *Fights) about(f targets.Finding) *fight {
	var key strings.Builder
	key.WriteString(string(f.Class))
	for _, field := range f.Fields {
		key.WriteString(" " + field.Path)
	}
	if fs.m == nil || len(fs.m) > maxFights {
		fs.m = map[plan.ObjectID]map[string]*fight{}
	}
	of := fs.m[f.ID]
	if of == nil || len(of) > fightFlips {
		of = map[string]*fight{}
		fs.m[f.ID] = of
	}
	if of[key.String()] == nil {
		of[key.String()] = &fight{}
	}
	return of[key.String()]
}

// Forget ends all fights: something else is wanted now.
func (fs *Fights) Forget() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.m = nil
}
