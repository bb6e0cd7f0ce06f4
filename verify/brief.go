package verify

import (
	"strings"
	"unicode"
)

// maxBrief is how much is shown of what a stranger wrote, in bytes.
const maxBrief = 400

// Brief returns s as people can be shown it: cut, and without characters that a
// terminal would act on. What is judged is full of the words of strangers.
func Brief(s string) string {
	cut := s
	if len(cut) > maxBrief {
		cut = cut[:maxBrief]
	}
	cut = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(cut, ""))
	if len(s) > maxBrief {
		cut += "…"
	}
	return cut
}

// BriefError returns an error of which [Brief] is the text. It wraps err.
func BriefError(err error) error { return &briefError{Brief(err.Error()), err} }

type briefError struct {
	text string
	err  error
}

func (e *briefError) Error() string { return e.text }

func (e *briefError) Unwrap() error { return e.err }

// Reasons returns one error of several, on one line, or nil if there is none. It
// wraps them all, and its text is bounded.
func Reasons(errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	const most = 8
	var texts []string
	for _, err := range errs[:min(len(errs), most)] {
		texts = append(texts, Brief(err.Error()))
	}
	if len(errs) > most {
		texts = append(texts, "…")
	}
	return &reasons{strings.Join(texts, "; "), errs}
}

type reasons struct {
	text string
	errs []error
}

func (e *reasons) Error() string { return e.text }

func (e *reasons) Unwrap() []error { return e.errs }
