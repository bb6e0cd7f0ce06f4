package summary

// Waiting returns how many summaries wait to be attached.
func (p *Publisher) Waiting() int { return len(p.work) }
