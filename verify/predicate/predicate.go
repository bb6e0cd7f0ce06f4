// Package predicate owns the judgement of predicates of any other type, by a
// module of Rego that the operator wrote.
//
// It guarantees a closed world (no network, no process, no clock but the time of
// the judgement) and an end within a time limit; that an error inside a builtin
// is a refusal; and that a rule sees what was verified alone: the predicate, who
// signed it and when. It refuses a module that can never refuse: one without a
// deny rule, with rules of names that nothing evaluates, or that looks for input
// or data that is never there.
package predicate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	oparego "github.com/open-policy-agent/opa/v1/rego"

	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/intoto"
)

// limit bounds the evaluation of one statement.
const limit = 5 * time.Second

// The longest predicates, in bytes, that policies get as a fact, and that a module
// judges: as a value of Rego they take about thirty times the memory.
const (
	maxFact   = 16 << 10
	maxJudged = 4 << 20
)

// Judge judges predicates of one type. It implements [verify.Judge].
type Judge struct {
	typ   string
	rules *oparego.PreparedEvalQuery // nil: the statement alone is enough
	limit time.Duration
	timed bool // the module asks what time it is
}

// New returns the Judge of a requirement for a predicate. Its errors name the
// line of the module at fault.
func New(q verify.Requirement) (verify.Judge, error) {
	if q.Predicate == nil {
		return nil, verify.ErrNotApplicable
	}
	j := Judge{typ: q.Predicate.Type, limit: limit}
	if len(q.Predicate.Rego) == 0 {
		return j, nil
	}
	rules, err := compile(q.Predicate.Rego)
	if err != nil {
		return nil, fmt.Errorf("predicate %s: %w", j.typ, err)
	}
	j.rules, j.timed = &rules, bytes.Contains(q.Predicate.Rego, []byte("now_ns"))
	return j, nil
}

// Reads implements [verify.Judge].
func (j Judge) Reads(predicateType string) bool { return predicateType == j.typ }

// Judge implements [verify.Judge]. The facts are {type, judged, predicate}; the
// last one only of a short predicate.
func (j Judge) Judge(st verify.Statement, now time.Time) (verify.Finding, error) {
	var raw json.RawMessage
	if err := intoto.Decode(st.Predicate, &raw); err != nil {
		return verify.Finding{}, fmt.Errorf("the predicate is not usable: %w", err)
	}
	predicate, err := value(raw)
	if err != nil {
		return verify.Finding{}, fmt.Errorf("the predicate is not usable: %w", err)
	}
	if j.rules != nil {
		if len(raw) > maxJudged {
			return verify.Finding{}, fmt.Errorf("the predicate is longer than the %d bytes that a Rego module judges", maxJudged)
		}
		if err := j.evaluate(st, predicate, now); err != nil {
			return verify.Finding{}, err
		}
	}
	f := verify.Finding{Text: verify.Brief(j.typ), Facts: map[string]any{"type": j.typ, "judged": j.rules != nil}}
	if j.timed { // it may say something else later
		f.NotAfter = now.Add(time.Minute)
	}
	if len(raw) <= maxFact {
		f.Facts["predicate"] = predicate
	}
	return f, nil
}

// value reads JSON with numbers as they are written.
func value(raw []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	err := d.Decode(&v)
	return v, err
}

// evaluate returns what the deny rules say. A judgement has no context of its own:
// it does no I/O, and ends within the limit.
func (j Judge) evaluate(st verify.Statement, predicate any, now time.Time) (err error) {
	// The engine is not ours and the bytes are a stranger's.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the Rego module: the engine panicked: %v", r)
		}
	}()
	in, err := input(st, predicate)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), j.limit)
	defer cancel()
	rs, err := j.rules.Eval(ctx, oparego.EvalParsedInput(in), oparego.EvalTime(now))
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the Rego module did not end within %s", j.limit)
	case err != nil:
		return fmt.Errorf("the Rego module: %s", intoto.Short(err.Error()))
	case len(rs) != 1 || len(rs[0].Expressions) != 1:
		return errors.New("the Rego module gave no answer")
	}
	set, ok := rs[0].Expressions[0].Value.([]any)
	if !ok {
		return errors.New("the Rego module: deny is not a set")
	}
	return denied(set)
}

// denied makes the messages of the deny rules an error. What is not a message is
// one, too: somebody meant to refuse.
func denied(set []any) error {
	const most = 8
	var all []string
	for _, m := range set[:min(len(set), most)] {
		text, ok := m.(string)
		if !ok || strings.TrimSpace(text) == "" {
			return errors.New("the Rego module: a deny rule contains something that is not a message")
		}
		all = append(all, intoto.Short(text))
	}
	if len(all) == 0 {
		return nil
	}
	return fmt.Errorf("denied: %s", strings.Join(all, "; "))
}

// The names at the root of input.
const (
	inPredicate   = "predicate"
	inType        = "predicateType"
	inSubject     = "subject"     // digest of the artifact
	inSubjects    = "subjects"    // all that the statement is about, as signed
	inSigners     = "signers"     // names in the rule
	inCertificate = "certificate" // null for a key
	inTime        = "time"        // proven, RFC 3339; null where nobody but the signer knows it
)

var inputs = []string{inPredicate, inType, inSubject, inSubjects, inSigners, inCertificate, inTime}

func input(st verify.Statement, predicate any) (ast.Value, error) {
	in := map[string]any{
		inPredicate: predicate, inType: st.PredicateType, inSubject: st.Subject, inSubjects: st.Subjects,
		inSigners: st.Signers, inCertificate: st.Certificate, inTime: nil,
	}
	if !st.Time.IsZero() {
		in[inTime] = st.Time.UTC().Format(time.RFC3339)
	}
	b, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("the statement is not JSON: %w", err)
	}
	v, err := value(b)
	if err != nil {
		return nil, err
	}
	return ast.InterfaceToValue(v)
}
