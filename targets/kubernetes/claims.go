package kubernetes

import (
	"sync"

	"github.com/holdfast-dev/holdfast/targets/plan"
)

// Claims is the table of which stack declares which object of one cluster. The
// environments of a cluster share it, so that an object that moves from a stack
// to another is never pruned on its way, whichever of them is first. It is safe
// for concurrent use.
type Claims struct {
	mu      sync.Mutex
	objects map[plan.ObjectID]map[string]bool // object → owners whose newest rendering has it
	owners  map[string]map[plan.ObjectID]bool // the same, by owner
	holders map[string]*Target                // who made an owner's claims
	awaited map[string]*expected              // owners whose next rendering is not there yet
}

// expected is a rendering that is on its way.
type expected struct {
	of     *Target
	failed bool // it cannot be made before something is corrected
}

// NewClaims returns an empty table.
func NewClaims() *Claims {
	return &Claims{
		objects: map[plan.ObjectID]map[string]bool{},
		owners:  map[string]map[plan.ObjectID]bool{},
		holders: map[string]*Target{},
		awaited: map[string]*expected{},
	}
}

// Expect says that the stack is about to be rendered anew, and may declare what
// another stack has given up. Until it is rendered, renounced or closed, other
// stacks of the cluster wait before they prune; if it cannot be rendered, they go
// on and keep what they would prune. The reconciler MUST call it for every stack
// that a commit changes before it lets any of them go on.
func (t *Target) Expect() {
	c := t.c.claims
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaited[t.owner] = &expected{of: t}
}

// Postpone implements [targets.Claimer].
func (t *Target) Postpone() {
	c := t.c.claims
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaited[t.owner] = &expected{of: t, failed: true}
}

// Renounce ends the claims of a stack that is no longer declared under its name,
// and lets other stacks take over its objects. It deletes nothing.
func (t *Target) Renounce() {
	c := t.c.claims
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unclaim(t.owner)
	c.owners[t.owner] = map[plan.ObjectID]bool{}
	c.holders[t.owner] = nil // no Close of an older target takes that back
	delete(c.awaited, t.owner)
}

// claim replaces what the stack of t claims.
func (c *Claims) claim(t *Target, ids map[plan.ObjectID]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unclaim(t.owner)
	delete(c.awaited, t.owner)
	c.holders[t.owner] = t
	c.owners[t.owner] = ids
	for id := range ids {
		if c.objects[id] == nil {
			c.objects[id] = map[string]bool{}
		}
		c.objects[id][t.owner] = true
	}
}

// withdraw ends the claims of t, unless a newer target of the same stack made them.
func (c *Claims) withdraw(t *Target) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.awaited[t.owner]; e != nil && e.of == t {
		delete(c.awaited, t.owner)
	}
	if c.holders[t.owner] == t {
		c.unclaim(t.owner)
		delete(c.holders, t.owner)
	}
}

// unclaim forgets the claims of an owner. The caller holds mu.
func (c *Claims) unclaim(owner string) {
	for id := range c.owners[owner] {
		if delete(c.objects[id], owner); len(c.objects[id]) == 0 {
			delete(c.objects, id)
		}
	}
	delete(c.owners, owner)
}

// other returns the first other owner, by name, whose newest rendering has id, or "".
func (c *Claims) other(owner string, id plan.ObjectID) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	other := ""
	for o := range c.objects[id] {
		if o != owner && (other == "" || o < other) {
			other = o
		}
	}
	return other
}

// has reports whether owner's newest rendering has id.
func (c *Claims) has(owner string, id plan.ObjectID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.objects[id][owner]
}

// gaveUp reports whether owner is a stack of this process whose newest rendering
// no longer has id.
func (c *Claims) gaveUp(owner string, id plan.ObjectID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids, known := c.owners[owner]
	return known && !ids[id]
}

// failed notes that a rendering that is waited for cannot be made.
func (c *Claims) failed(t *Target) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.awaited[t.owner]; e != nil && e.of == t {
		e.failed = true
	}
}

// waitsFor returns another owner that has not said yet what it declares, or "",
// and whether it cannot say so before something is corrected. One that can say so
// soon comes first.
func (c *Claims) waitsFor(owner string) (other string, failed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for o, e := range c.awaited {
		if o != owner && (other == "" || failed && !e.failed || failed == e.failed && o < other) {
			other, failed = o, e.failed
		}
	}
	return other, failed
}

// isAwaited reports whether owner has not said yet what it declares.
func (c *Claims) isAwaited(owner string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.awaited[owner] != nil
}
