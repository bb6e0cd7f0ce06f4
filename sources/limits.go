package sources

import "time"

// Limits bound what a source may cost. Zero values mean the defaults.
type Limits struct {
	Bytes      int64         // all files of a snapshot together, and an artifact as it is transferred; 512 MiB
	File       int64         // one file; 16 MiB
	Files      int           // files of a snapshot, and paths of one change; 100,000
	PathLength int           // bytes of one path; 1024
	Timeout    time.Duration // one Head or Fetch; 2 minutes
}

// WithDefaults returns l with the defaults in the place of zero values.
func (l Limits) WithDefaults() Limits {
	if l.Bytes == 0 {
		l.Bytes = 512 << 20
	}
	if l.File == 0 {
		l.File = 16 << 20
	}
	if l.Files == 0 {
		l.Files = 100_000
	}
	if l.PathLength == 0 {
		l.PathLength = 1024
	}
	if l.Timeout == 0 {
		l.Timeout = 2 * time.Minute
	}
	return l
}

// Negative reports whether a limit is less than nothing, which nothing could keep to.
func (l Limits) Negative() bool {
	return l.Bytes < 0 || l.File < 0 || l.Files < 0 || l.PathLength < 0 || l.Timeout < 0
}
