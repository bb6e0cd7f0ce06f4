package forge

import (
	"sync"
	"time"
)

// coalescer calls poke at most once per [pace], and once more after the last
// request that came in between: what was pushed last is looked at.
type coalescer struct {
	poke func()

	mu      sync.Mutex
	last    time.Time
	timer   *time.Timer // set while a look waits
	stopped bool
}

// ask asks for a look.
func (c *coalescer) ask() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped || c.timer != nil { // the one that waits will see this too
		return
	}
	if wait := pace - time.Since(c.last); wait > 0 {
		c.timer = time.AfterFunc(wait, c.fire)
		return
	}
	c.look()
}

func (c *coalescer) fire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer = nil; !c.stopped {
		c.look()
	}
}

// look is called with mu held.
func (c *coalescer) look() {
	c.last = time.Now()
	c.poke()
}

// stop ends the looks. One that waits is dropped.
func (c *coalescer) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	if c.timer != nil {
		c.timer.Stop()
	}
}
