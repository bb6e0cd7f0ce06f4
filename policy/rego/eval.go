package rego

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/conftest/output"
	"github.com/open-policy-agent/opa/v1/ast"
	oparego "github.com/open-policy-agent/opa/v1/rego"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/policy"
)

// contextKey is where the verified facts stand in each document.
const contextKey = "holdfast"

// terraform is the target whose plan is itself a document.
const terraform = "terraform"

// maxListDepth bounds lists within lists.
const maxListDepth = 8

// Evaluate judges in at the present instant.
//
// Without documents nothing is judged, Rules is zero and the decision is a
// denial. The one exception is the plan stage of a target other than Terraform,
// whose rendering was judged document by document: there the rules see
// input.holdfast alone, once.
func (e *Evaluator) Evaluate(ctx context.Context, in policy.Input) (policy.Decision, error) {
	return e.EvaluateAt(ctx, in, time.Now())
}

// EvaluateAt is Evaluate at a given instant, which is what time.now_ns returns
// to every rule. With the same input, policies and instant it makes the same
// decision.
func (e *Evaluator) EvaluateAt(ctx context.Context, in policy.Input, at time.Time) (policy.Decision, error) {
	d := policy.Decision{Stage: in.Stage, Of: in.Of, Input: in.Digest(), Policies: e.digest}
	docs, err := e.documents(in)
	if err != nil {
		return policy.Decision{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	for _, doc := range docs {
		verdicts, err := e.judge(ctx, doc, at)
		if err != nil {
			return policy.Decision{}, err
		}
		for _, v := range verdicts {
			d.Results = append(d.Results, v.results(doc)...)
		}
	}
	if len(docs) > 0 {
		d.Rules = e.rules
	}
	slices.SortStableFunc(d.Results, compareResults)
	return d, nil
}

// document is one input of the rules.
type document struct {
	file, dir string
	line      int
	object    string
	value     any
	facts     *ast.Term // what stands under contextKey; nil: nothing
}

// documents returns the inputs that in means: lists split, facts added.
func (e *Evaluator) documents(in policy.Input) ([]document, error) {
	facts, err := factsOf(in)
	if err != nil {
		return nil, err
	}
	var docs []document
	for _, d := range in.Documents {
		docs = append(docs, expand(document{file: d.Name, dir: path.Dir(d.Name), line: d.Line, value: d.Value}, 0)...)
	}
	if len(docs) == 0 {
		if in.Stage != policy.StagePlan || in.Target == terraform || in.Target == "" {
			return nil, nil
		}
		docs = []document{{file: "plan", dir: ".", value: map[string]any{}}}
	}
	for i := range docs {
		m, ok := docs[i].value.(map[string]any)
		if !ok {
			continue
		}
		if _, ok := m[contextKey]; ok {
			return nil, fault.New(fault.Invalid, "policy/rego.Evaluate", "rename the key", "%s:%d: the key %q at the root of a document is reserved", docs[i].file, docs[i].line, contextKey)
		}
		if e.combine { // each of them is within one document
			m = maps.Clone(m)
			m[contextKey] = facts
			docs[i].value = m
		}
	}
	if e.combine {
		return []document{combine(docs)}, nil
	}
	parsed, err := parse(facts)
	if err != nil {
		return nil, fault.New(fault.Internal, "policy/rego.Evaluate", "", "evidence: %w", err)
	}
	for i := range docs {
		docs[i].facts = ast.NewTerm(parsed)
	}
	return docs, nil
}

// parse makes v the engine's value. A panic inside the engine is an error.
func parse(v any) (_ ast.Value, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("policy engine panicked: %v", p)
		}
	}()
	return ast.InterfaceToValue(v)
}

// combine makes conftest's combined input of docs, in their order of file name.
func combine(docs []document) document {
	all := make([]any, len(docs))
	slices.SortStableFunc(docs, func(a, b document) int { return cmp.Compare(a.file, b.file) })
	for i, d := range docs {
		all[i] = map[string]any{"path": d.file, "contents": d.value}
	}
	return document{file: "Combined", dir: ".", value: all}
}

// expand splits arrays as conftest does, and Kubernetes lists, which conftest
// does not: a rule about Deployments must see the one inside a List. A value
// that only looks like a list (another kind than "List") is judged itself too.
func expand(d document, depth int) []document {
	switch v := d.value.(type) {
	case []any:
		var out []document
		for _, item := range v {
			d.value = item
			out = append(out, expandList(d, depth)...)
		}
		return out
	default:
		return expandList(d, depth)
	}
}

func expandList(d document, depth int) []document {
	m, ok := d.value.(map[string]any)
	if !ok {
		return []document{d}
	}
	d.object = objectName(m)
	kind, _ := m["kind"].(string)
	version, _ := m["apiVersion"].(string)
	items, isList := m["items"].([]any)
	if version == "" || !isList || !strings.HasSuffix(kind, "List") || depth >= maxListDepth {
		return []document{d}
	}
	var out []document
	if kind != "List" || len(items) == 0 {
		out = append(out, d)
	}
	for _, item := range items {
		if im, ok := item.(map[string]any); ok && im["kind"] == nil && kind != "List" {
			item = withType(im, version, strings.TrimSuffix(kind, "List"))
		}
		out = append(out, expandList(document{file: d.file, dir: d.dir, line: d.line, value: item}, depth+1)...)
	}
	return out
}

// withType names the type that an item of a typed list leaves out.
func withType(m map[string]any, version, kind string) map[string]any {
	out := map[string]any{"apiVersion": version, "kind": kind}
	for k, v := range m {
		out[k] = v
	}
	return out
}

// objectName returns "Kind/name" of a Kubernetes object, else "".
func objectName(m map[string]any) string {
	kind, _ := m["kind"].(string)
	meta, _ := m["metadata"].(map[string]any)
	name, _ := meta["name"].(string)
	if name == "" {
		name, _ = meta["generateName"].(string)
	}
	if kind == "" || name == "" {
		return ""
	}
	return kind + "/" + name
}

// factsOf returns what stands under input.holdfast. Evidence with a failed
// check is left out: a rule must not find anything there that is not proven.
func factsOf(in policy.Input) (any, error) {
	artifacts := map[string]any{}
	for _, ev := range in.Report.Evidence {
		if !ev.Verified() {
			continue
		}
		s := ev.Subject
		a := map[string]any{
			"kind": s.Kind, "reference": s.Reference, "name": s.Name, "digest": s.Digest,
			"rule": ev.Rule, "checks": ev.Checks, "facts": ev.Facts, "locations": s.Locations,
		}
		artifacts[s.Reference] = a
		artifacts[s.Pinned()] = a
	}
	v, err := toJSON(map[string]any{
		"stage": in.Stage, "target": in.Target, "stack": in.Stack, "environment": in.Environment,
		"repository": in.Repository, "commit": in.Commit, "artifacts": artifacts,
	})
	if err != nil {
		return nil, fault.New(fault.Internal, "policy/rego.Evaluate", "", "evidence is not JSON: %w", err)
	}
	return v, nil
}

// verdict is what one namespace says about one document.
type verdict struct {
	namespace string
	rules     []ruleVerdict
	heads     int
}

type ruleVerdict struct {
	rule
	messages   []output.Result
	exceptions int // how many exceptions name the rule
}

// judge evaluates the rules against doc, and returns a verdict of each
// namespace, in their order. A panic inside the engine is an error: it must
// never let a document pass.
func (e *Evaluator) judge(ctx context.Context, doc document, at time.Time) (_ []verdict, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.New(fault.Internal, "policy/rego.Evaluate", "", "%s: policy engine panicked: %v", doc.file, p)
		}
	}()
	if err := ctx.Err(); err != nil {
		return nil, asFault(ctx, err)
	}
	value, err := doc.parsed()
	if err != nil {
		return nil, fault.New(fault.Invalid, "policy/rego.Evaluate", "", "%s: %w", doc.file, err)
	}
	query := e.prepared
	if e.fileInfo {
		if query, err = e.prepare(ctx, e.fileStore(path.Base(doc.file), doc.dir)); err != nil {
			return nil, asFault(ctx, err)
		}
	}
	rs, err := query.Eval(ctx, oparego.EvalParsedInput(value), oparego.EvalTime(at))
	if err != nil {
		return nil, asFault(ctx, fmt.Errorf("%s: %w", place(doc), err))
	}
	verdicts, err := e.read(rs)
	if err != nil {
		return nil, fault.New(fault.Denied, "policy/rego.Evaluate", "let the rule contain a string, or an object with a string msg", "%s: %w", place(doc), err)
	}
	return verdicts, nil
}

// parsed returns doc as the engine takes it, with the facts, if it has any.
func (d document) parsed() (ast.Value, error) {
	value, err := ast.InterfaceToValue(d.value)
	if err != nil || d.facts == nil {
		return value, err
	}
	o, ok := value.(ast.Object)
	if !ok {
		return value, nil // a document that is no object has no place for them
	}
	o.Insert(ast.StringTerm(contextKey), d.facts)
	return o, nil
}

func place(d document) string {
	if d.line > 0 {
		return fmt.Sprintf("%s:%d", d.file, d.line)
	}
	return d.file
}

// read turns the answer of the engine into the verdicts of the namespaces. An
// answer that is not exactly what the query asks for is an error.
func (e *Evaluator) read(rs oparego.ResultSet) ([]verdict, error) {
	if len(rs) != 1 {
		return nil, fmt.Errorf("the policies gave %d answers", len(rs))
	}
	results, ok := rs[0].Bindings[resultsVar].([]any)
	if !ok || len(results) != len(e.namespaces) {
		return nil, errors.New("the policies gave no results")
	}
	exceptions, ok := rs[0].Bindings[exceptionsVar].([]any)
	if !ok || len(exceptions) != len(e.namespaces) {
		return nil, errors.New("the policies gave no exceptions")
	}
	verdicts := make([]verdict, len(e.namespaces))
	for i := range e.namespaces {
		var err error
		if verdicts[i], err = e.namespaces[i].read(results[i], exceptions[i]); err != nil {
			return nil, err
		}
	}
	return verdicts, nil
}

// read turns what the rules of ns gave into a verdict.
func (ns *namespace) read(given, excepted any) (verdict, error) {
	results, ok := given.([]any)
	if !ok || len(results) != len(ns.rules) {
		return verdict{}, fmt.Errorf("namespace %s gave no results", ns.name)
	}
	exceptions, ok := excepted.([]any)
	if !ok {
		return verdict{}, fmt.Errorf("namespace %s gave no exceptions", ns.name)
	}
	v := verdict{namespace: ns.name, heads: ns.heads}
	for i, r := range ns.rules {
		rv := ruleVerdict{rule: r}
		set, ok := results[i].([]any)
		if !ok {
			return verdict{}, fmt.Errorf("rule data.%s.%s is not a set", ns.name, r.name)
		}
		for _, m := range set {
			res, err := message(m)
			if err != nil {
				return verdict{}, fmt.Errorf("rule data.%s.%s: %w", ns.name, r.name, err)
			}
			res.Metadata["query"] = "data." + ns.name + "." + r.name
			rv.messages = append(rv.messages, res)
		}
		for _, x := range exceptions {
			if x == r.exception {
				rv.exceptions++
			}
		}
		v.rules = append(v.rules, rv)
	}
	return v, nil
}

// message reads one element of a rule's set.
func message(m any) (output.Result, error) {
	var res output.Result
	switch m := m.(type) {
	case string:
		res = output.Result{Message: m, Metadata: map[string]any{}}
	case map[string]any:
		var err error
		if res, err = output.NewResult(m); err != nil {
			return output.Result{}, err
		}
	default:
		return output.Result{}, fmt.Errorf("contains a %T, which is not a message", m)
	}
	if res.Message == "" {
		return output.Result{}, fmt.Errorf("contains an empty message")
	}
	return res, nil
}

// results turns v into what a decision holds.
func (v verdict) results(doc document) []policy.Result {
	var out []policy.Result
	for _, r := range v.rules {
		if r.exceptions > 0 {
			out = append(out, policy.Result{
				Level: policy.Exception, Namespace: v.namespace, Rule: r.name, Message: exceptionQuery(v.namespace, r.rule),
				File: doc.file, Line: doc.line, Object: doc.object,
			})
			continue
		}
		for _, m := range r.messages {
			out = append(out, result(v.namespace, r.name, m, doc))
		}
	}
	return out
}

func result(ns, rule string, m output.Result, doc document) policy.Result {
	r := policy.Result{
		Level: level(rule), Namespace: ns, Rule: rule, Message: m.Message,
		File: doc.file, Line: doc.line, Object: doc.object,
	}
	for k, v := range m.Metadata {
		if k == "query" {
			continue
		}
		if s, ok := v.(string); ok && (k == "address" || k == "object") && r.Object == "" {
			r.Object = s
		}
		if r.Metadata == nil {
			r.Metadata = map[string]any{}
		}
		r.Metadata[k] = v
	}
	if m.Location != nil {
		if m.Location.File != "" {
			r.File, r.Line = m.Location.File, 0
		}
		if n, err := m.Location.Line.Int64(); err == nil && n > 0 {
			r.Line = int(n)
		}
	}
	return r
}

func level(rule string) policy.Level {
	switch {
	case warningName.MatchString(rule):
		return policy.Warn
	case strings.HasPrefix(rule, "violation"):
		return policy.Violation
	default:
		return policy.Deny
	}
}

func exceptionQuery(ns string, r rule) string {
	return fmt.Sprintf("data.%s.exception[_][_] == %q", ns, r.exception)
}

// check turns v into conftest's counts: a rule that gives nothing is one
// success, and so is each further body of a rule that gave fewer results.
func (v verdict) check(c *output.CheckResult) {
	successes, total := 0, 0
	for _, r := range v.rules {
		if r.exceptions > 0 {
			for range r.exceptions {
				c.Exceptions = append(c.Exceptions, output.Result{Message: exceptionQuery(v.namespace, r.rule)})
			}
			total += r.exceptions
			continue
		}
		if len(r.messages) == 0 {
			successes++
			total++
			continue
		}
		total += len(r.messages)
		if failureName.MatchString(r.name) {
			c.Failures = append(c.Failures, r.messages...)
		} else {
			c.Warnings = append(c.Warnings, r.messages...)
		}
	}
	if total < v.heads {
		successes += v.heads - total
	}
	c.Successes += successes
}

func compareResults(a, b policy.Result) int {
	return cmp.Or(
		cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Object, b.Object),
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Level, b.Level),
		cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Message, b.Message),
	)
}

// toJSON returns v as JSON decodes it, numbers kept exact.
func toJSON(v any) (any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var out any
	err = d.Decode(&out)
	return out, err
}

var _ policy.Evaluator = (*Evaluator)(nil)
