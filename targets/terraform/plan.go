package terraform

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/mask"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// PlanDocument is the name of the document that holds the plan as
// `terraform show -json` prints it, masked.
const PlanDocument = "plan.json"

// planName is the saved plan's file in the work directory.
const planName = "plan"

// sealed is the private half of a plan: the saved plan and what it was made
// from. It holds secrets in clear and never leaves memory.
type sealed struct {
	file  []byte
	r     *rendering
	only  []string // addresses that the plan was limited to
	ends  ending   // whether it ends the stack, and how
	tool  string   // digest of the tool
	stack string
	env   string
}

// payload binds the saved plan to the files that it must be applied over: the
// plan file holds the configuration, but not the scripts and templates that the
// configuration reads.
func (s *sealed) payload(m *mask.Masker) (digest.Digest, error) {
	tree, err := s.r.sum(m)
	if err != nil {
		return "", err
	}
	file := sha256.Sum256(s.file)
	b, err := json.Marshal([]any{s.env, s.stack, tree, file[:], s.only, s.ends, s.tool})
	if err != nil {
		return "", err
	}
	return keyed(m, "plan", b), nil
}

// Plan refreshes the state in memory and compares it with the configuration. It
// writes nothing. With only, the tool plans those resources and what they
// depend on. Drift is what it plans for the last rendering that was granted.
func (t *Target) Plan(ctx context.Context, r targets.Rendered, only ...plan.ObjectID) (plan.Plan, error) {
	p, err := t.plan(ctx, r, only)
	return p, fault.WithStack(t.spec.Stack, t.scrub(err))
}

func (t *Target) plan(ctx context.Context, r targets.Rendered, only []plan.ObjectID) (plan.Plan, error) {
	addresses, err := addressesOf(only)
	if err != nil {
		return plan.Plan{}, err
	}
	return t.saved(ctx, r, &sealed{only: addresses})
}

// saved has the tool save the plan that s describes, and completes s with it.
func (t *Target) saved(ctx context.Context, r targets.Rendered, s *sealed) (plan.Plan, error) {
	var v view
	err := t.planning(ctx, r, s, func(ctx context.Context, u *run) (err error) {
		v, s.file, err = u.plan(ctx, planName, s)
		return err
	})
	if err != nil {
		return plan.Plan{}, err
	}
	return t.bound(r, s, plan.Plan{Changes: v.changes, Keeps: v.keeps, Documents: []plan.Document{{Name: PlanDocument, Value: v.document}}})
}

// planning calls f with the tool ready to plan r, which is s's from then on.
func (t *Target) planning(ctx context.Context, r targets.Rendered, s *sealed, f func(context.Context, *run) error) error {
	const op = "targets/terraform.Plan"
	priv, ok := r.Private.(*rendering)
	if !ok || r.Stack != t.spec.Stack || r.Environment != t.spec.Environment {
		return fault.New(fault.Internal, op, "", "the rendering is not this target's")
	}
	if sum, err := priv.sum(t.cfg.Masker); err != nil || sum != r.Digest {
		return fault.New(fault.Internal, op, "", "the rendering was changed since it was made")
	}
	s.r, s.stack, s.env = priv, t.spec.Stack, t.spec.Environment
	var err error
	if s.tool, err = tools.sum(t.cfg.Binary); err != nil {
		return fault.Wrap(fault.Transient, op, "look at terraform.binary in the operator's file", err)
	}
	return t.within(ctx, priv, false, f)
}

// bound completes p, which says what s holds.
func (t *Target) bound(r targets.Rendered, s *sealed, p plan.Plan) (plan.Plan, error) {
	p.Stack, p.Environment, p.Target = s.stack, s.env, Name
	p.Revision, p.Rendered, p.Private = r.Revision, r.Digest, s
	var err error
	if p.Payload, err = s.payload(t.cfg.Masker); err != nil {
		return plan.Plan{}, fault.Wrap(fault.Internal, "targets/terraform.Plan", "", err)
	}
	return p, nil
}

// addressesOf returns the addresses to limit a plan to.
func addressesOf(only []plan.ObjectID) ([]string, error) {
	var out []string
	for _, id := range only {
		if id.Kind == kindOutput || id.Kind == kindState || id.Kind == kindAction {
			return nil, fault.New(fault.Invalid, "targets/terraform.Plan", "name resources", "%s is not a resource: the tool cannot plan it alone", id.Name)
		}
		address, _, _ := strings.Cut(id.Name, deposedMark)
		out = append(out, address)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// view is a plan as it may be shown.
type view struct {
	changes  []plan.Change
	keeps    int // managed resources that the stack has afterwards
	document any
}

// plan saves the plan that s describes under name, and returns what it says and the plan.
// What is shown is what is returned: it is read once, when nothing runs any more that could
// write to it, and shown from where nothing can.
func (u *run) plan(ctx context.Context, name string, s *sealed) (view, []byte, error) {
	const op = "targets/terraform.Plan"
	args := []string{"plan", "-json", "-no-color", "-input=false", "-detailed-exitcode", "-out=" + u.file(path.Join(planDir, name))}
	if s.ends == destroyed {
		args = append(args, "-destroy")
	}
	if !u.writes && u.r.config.backend == "" {
		args = append(args, "-lock=false") // the lock of the run holds, and the state cannot be written
	}
	for _, a := range s.only {
		args = append(args, "-target="+a)
	}
	var diags []diagnostic
	err := u.tool(ctx, u.t.cfg.Limits.Output, u.listener(ctx, slog.LevelDebug, &diags, nil), args...)
	var status *toolError
	changed := errors.As(err, &status) && status.exit.Code == 2 // of -detailed-exitcode
	if err != nil && !changed {
		return view{}, nil, u.failure(op, u.describe(diags), err)
	}
	if err := u.unchanged(); err != nil {
		return view{}, nil, err
	}
	saved, err := u.readPlan(name)
	if err != nil {
		return view{}, nil, err
	}
	own, err := u.ownFiles()
	if err != nil {
		return view{}, nil, err
	}
	if err := u.r.config.sameConfiguration(saved, own); err != nil {
		return view{}, nil, err
	}
	if !changed {
		// Nothing is removed; how much there is, an empty plan does not need to say.
		return view{keeps: 1, document: map[string]any{"resource_changes": []any{}, "output_changes": map[string]any{}}}, saved, nil
	}
	kept, err := u.keepPlan("shown-"+name, saved)
	if err != nil {
		return view{}, nil, fault.Wrap(fault.Transient, op, "look at the run directory: full or read-only?", err)
	}
	raw, err := u.show(ctx, kept)
	if err != nil {
		return view{}, nil, err
	}
	v, err := u.t.view(raw, u.r)
	if err != nil {
		return view{}, nil, fault.Wrap(fault.Internal, op, "", err)
	}
	if s.ends == destroyed {
		v.changes = removals(v.changes)
	}
	return v, saved, nil
}

// show returns the saved plan in a file as JSON, with its secrets in clear.
func (u *run) show(ctx context.Context, name string) ([]byte, error) {
	const op = "targets/terraform.show"
	var raw bytes.Buffer
	err := u.tool(ctx, u.t.cfg.Limits.PlanJSON, func(line []byte) { raw.Write(line); raw.WriteByte('\n') }, "show", "-json", "-no-color", u.file(name))
	return raw.Bytes(), u.failure(op, "", err)
}

func (u *run) readPlan(name string) ([]byte, error) {
	b, err := readRegular(u.place.files(), path.Join(planDir, name), u.t.cfg.Limits.PlanFile)
	if errors.Is(err, errTooMuch) {
		return nil, fault.New(fault.Invalid, "targets/terraform.Plan", "make the stack smaller, or raise the operator's limits",
			"the saved plan has more than %d bytes", u.t.cfg.Limits.PlanFile)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Transient, "targets/terraform.Plan", "", err)
	}
	return b, nil
}

// Kinds of change that are not resources.
const (
	kindOutput = "output"
	kindState  = "state"
	kindAction = "action"
)

// deposedMark stands between an address and the key of a deposed object of it.
const deposedMark = " (deposed "

// knownLater stands for what only the apply will know.
const knownLater = "(known after apply)"

// The parts of a plan's JSON that changes are made from,
// https://developer.hashicorp.com/terraform/internals/json-format
type (
	jsonPlan struct {
		FormatVersion string           `json:"format_version"`
		Resources     []resourceChange `json:"resource_changes"`
		Deferred      []struct {
			Reason string `json:"reason"`
		} `json:"deferred_changes"`
		Outputs map[string]jsonChange `json:"output_changes"`
		Actions []struct {
			Address string `json:"address"`
		} `json:"action_invocations"`
	}
	resourceChange struct {
		Address         string     `json:"address"`
		PreviousAddress string     `json:"previous_address"`
		ModuleAddress   string     `json:"module_address"`
		Mode            string     `json:"mode"`
		Type            string     `json:"type"`
		Name            string     `json:"name"`
		Deposed         string     `json:"deposed"`
		ActionReason    string     `json:"action_reason"`
		Change          jsonChange `json:"change"`
	}
	jsonChange struct {
		Actions   []string `json:"actions"`
		Before    any      `json:"before"`
		After     any      `json:"after"`
		Unknown   any      `json:"after_unknown"`
		Importing any      `json:"importing"`
	}
)

// view masks the JSON of a plan and reads the changes from the masked half, so
// that none of what it returns can hold more than the document does.
func (t *Target) view(raw []byte, r *rendering) (view, error) {
	doc, err := decode(raw)
	if err != nil {
		return view{}, fmt.Errorf("the plan's JSON: %w", err)
	}
	root, ok := doc.(map[string]any)
	if !ok {
		return view{}, errors.New("the plan's JSON is not an object")
	}
	var values struct {
		Planned struct {
			Root plannedModule `json:"root_module"`
		} `json:"planned_values"`
	}
	if err := json.Unmarshal(raw, &values); err != nil { // before masks replace anything
		return view{}, fmt.Errorf("the plan's JSON: %w", err)
	}
	if err := t.protect(raw, r.config); err != nil { // before masks replace anything
		return view{}, err
	}
	declared := map[string]bool{}
	for name, v := range r.config.variables {
		declared[name] = v.sensitive
	}
	for name := range t.secrets {
		declared[name] = true
	}
	maskPlan(t.cfg.Masker, root, declared)
	delete(root, "timestamp") // two plans of one state are equal
	b, err := json.Marshal(root)
	if err != nil {
		return view{}, err
	}
	var p jsonPlan
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := dec.Decode(&p); err != nil {
		return view{}, fmt.Errorf("the plan's JSON: %w", err)
	}
	if !strings.HasPrefix(p.FormatVersion, "1.") {
		return view{}, fmt.Errorf("the plan's JSON has format version %q, not 1", p.FormatVersion)
	}
	changes, err := p.changes(r.config)
	return view{changes: changes, keeps: values.Planned.Root.managed(), document: root}, err
}

// plannedModule is the part of planned values that says which resources there will be.
type plannedModule struct {
	Resources []struct {
		Mode string `json:"mode"`
	} `json:"resources"`
	Children []plannedModule `json:"child_modules"`
}

func (m plannedModule) managed() int {
	n := 0
	for _, r := range m.Resources {
		if r.Mode == "managed" {
			n++
		}
	}
	for _, c := range m.Children {
		n += c.managed()
	}
	return n
}

func (p *jsonPlan) changes(cfg *configuration) ([]plan.Change, error) {
	var out []plan.Change
	for _, rc := range p.Resources {
		c, ok, err := rc.change(cfg)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, c)
		}
	}
	for _, name := range sortedKeys(p.Outputs) {
		c, ok, err := p.Outputs[name].change(plan.ObjectID{Kind: kindOutput, Name: "output." + name})
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, c)
		}
	}
	for _, a := range p.Actions {
		id := plan.ObjectID{Kind: kindAction, Name: a.Address}
		if !slices.ContainsFunc(out, func(c plan.Change) bool { return c.ID == id }) {
			out = append(out, plan.Change{ID: id, Action: plan.Update, Reason: "an action is invoked"})
		}
	}
	if len(out) == 0 {
		// The tool says that the plan is not empty, so neither is ours.
		out = append(out, plan.Change{ID: plan.ObjectID{Kind: kindState, Name: "state"}, Action: plan.Update, Reason: "only the state changes"})
	}
	slices.SortStableFunc(out, func(a, b plan.Change) int { return a.ID.Compare(b.ID) })
	return out, nil
}

func (rc resourceChange) change(cfg *configuration) (plan.Change, bool, error) {
	id := plan.ObjectID{Kind: rc.Type, Name: rc.Address}
	if rc.Deposed != "" {
		id.Name += deposedMark + rc.Deposed + ")"
	}
	if rc.Mode == "data" && !slices.Contains(rc.Change.Actions, "delete") {
		return plan.Change{}, false, nil // reading is no change
	}
	c, ok, err := rc.Change.change(id)
	if err != nil {
		return c, false, fmt.Errorf("%s: %w", rc.Address, err)
	}
	c.Source, c.Excerpt = cfg.locate(rc.ModuleAddress, rc.Mode, rc.Type, rc.Name)
	var reasons []string
	if slices.Contains(rc.Change.Actions, "forget") {
		reasons = append(reasons, "forgotten: it stays, and nothing manages it any more")
	}
	if rc.PreviousAddress != "" && rc.PreviousAddress != rc.Address {
		reasons = append(reasons, "moved from "+rc.PreviousAddress)
	}
	if rc.Change.Importing != nil {
		reasons = append(reasons, "imported")
	}
	if !ok && len(reasons) > 0 {
		c.Action, ok = plan.Update, true
	}
	if rc.ActionReason != "" {
		reasons = append(reasons, strings.ReplaceAll(rc.ActionReason, "_", " "))
	}
	c.Reason = strings.Join(reasons, "; ")
	return c, ok, nil
}

// change turns a change of the plan into ours; ok is false if it does nothing.
func (j jsonChange) change(id plan.ObjectID) (c plan.Change, ok bool, err error) {
	c = plan.Change{ID: id}
	switch strings.Join(j.Actions, ",") {
	case "no-op", "read", "":
		return c, false, nil
	case "create":
		c.Action = plan.Create
	case "update":
		c.Action = plan.Update
	case "delete", "forget":
		c.Action = plan.Delete
	case "delete,create", "create,delete", "forget,create", "create,forget":
		c.Action = plan.Replace
	default:
		return c, false, fmt.Errorf("the plan has an action %q, which is not known", j.Actions)
	}
	before, after := map[string]string{}, map[string]string{}
	if err := flatten("", j.Before, before); err != nil {
		return c, false, err
	}
	if c.Action != plan.Delete {
		if err := flatten("", j.After, after); err != nil {
			return c, false, err
		}
		flattenUnknown("", j.Unknown, after)
	}
	if c.Action == plan.Create {
		clear(before)
	}
	paths := map[string]bool{}
	for p := range before {
		paths[p] = true
	}
	for p := range after {
		paths[p] = true
	}
	for _, p := range sortedKeys(paths) {
		if before[p] != after[p] {
			c.Fields = append(c.Fields, plan.Field{Path: p, From: before[p], To: after[p]})
		}
	}
	if c.Action != plan.Create {
		touched := before // a delete or a replace touches all of it
		if c.Action == plan.Update {
			touched = map[string]string{}
			for _, f := range c.Fields {
				touched[f.Path] = f.From
			}
		}
		if c.Before, err = digestOf(touched); err != nil {
			return c, false, err
		}
	}
	if c.Action != plan.Delete {
		if c.After, err = digestOf(after); err != nil {
			return c, false, err
		}
	}
	return c, true, nil
}

func digestOf(m map[string]string) (digest.Digest, error) {
	b, err := json.Marshal(m)
	return digest.FromBytes(b), err
}

var pointer = strings.NewReplacer("~", "~0", "/", "~1")

// flatten writes the leaves of v into out, by JSON pointer. A null is an absent field.
func flatten(at string, v any, out map[string]string) error {
	switch v := v.(type) {
	case nil:
		return nil
	case map[string]any:
		for k, e := range v {
			if err := flatten(at+"/"+pointer.Replace(k), e, out); err != nil {
				return err
			}
		}
		if len(v) > 0 {
			return nil
		}
	case []any:
		for i, e := range v {
			if err := flatten(fmt.Sprintf("%s/%d", at, i), e, out); err != nil {
				return err
			}
		}
		if len(v) > 0 {
			return nil
		}
	}
	b, err := json.Marshal(v)
	out[at] = string(b)
	return err
}

// flattenUnknown marks the fields that only the apply will know.
func flattenUnknown(at string, v any, out map[string]string) {
	switch v := v.(type) {
	case bool:
		if v {
			out[at] = `"` + knownLater + `"`
		}
	case map[string]any:
		for k, e := range v {
			flattenUnknown(at+"/"+pointer.Replace(k), e, out)
		}
	case []any:
		for i, e := range v {
			flattenUnknown(fmt.Sprintf("%s/%d", at, i), e, out)
		}
	}
}
