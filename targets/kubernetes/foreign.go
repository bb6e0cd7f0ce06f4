package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bmatcuk/doublestar/v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"

	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/targets/plan"
)

// Injector is a second manager that may add fields to managed objects. The name
// of a manager is what a client says it is, and whoever may write an object may
// clear its managed fields: Paths and Images are what bounds an injector.
type Injector struct {
	Manager     string   // exact field manager, as managedFields names it
	Subresource string   // only what it wrote through this subresource; empty: the object itself
	Kinds       []string // globs (path.Match) over Kind or Kind.group
	Paths       []string // JSON pointers, * for one segment; what is below is covered
	// Images are globs (doublestar) over the references that it may add. An image
	// that none matches is a finding, whatever Paths say.
	Images []string
}

func (in Injector) validate(own string) error {
	switch {
	case in.Manager == "" || in.Manager == own:
		return fmt.Errorf("kubernetes: %q cannot be an injector", in.Manager)
	case len(in.Kinds) == 0 || len(in.Paths) == 0:
		return fmt.Errorf("kubernetes: injector %s: no kinds or no paths", in.Manager)
	}
	for _, g := range in.Kinds {
		if _, err := path.Match(g, ""); err != nil {
			return fmt.Errorf("kubernetes: injector %s: kind %q: %w", in.Manager, g, err)
		}
	}
	for _, p := range in.Paths {
		if len(p) < 2 || p[0] != '/' || strings.HasSuffix(p, "/") {
			return fmt.Errorf("kubernetes: injector %s: %q is no JSON pointer to a field", in.Manager, p)
		}
	}
	for _, g := range in.Images {
		if !doublestar.ValidatePattern(g) {
			return fmt.Errorf("kubernetes: injector %s: %q is not a glob", in.Manager, g)
		}
	}
	return nil
}

// covers reports whether the injector may add what is at p. What nobody owns,
// such as what an admission webhook added, is covered by its path alone.
func (in Injector) covers(id plan.ObjectID, p place) bool {
	kind, _, _ := strings.Cut(id.Kind, ".")
	return slices.ContainsFunc(in.Kinds, func(g string) bool { return glob(g, id.Kind) || glob(g, kind) }) &&
		slices.ContainsFunc(in.Paths, func(pattern string) bool { return plan.Within(pattern, p.pointer()) }) &&
		(len(p.owners) == 0 || slices.Contains(p.owners, owner{in.Manager, in.Subresource}))
}

func (in Injector) permits(reference string) bool {
	return slices.ContainsFunc(in.Images, func(g string) bool {
		ok, err := doublestar.Match(g, reference)
		return err == nil && ok
	})
}

// owner is who owns a field: a manager, and the subresource that it wrote through.
type owner struct{ manager, subresource string }

// claimed is a field set, or a part of one, and whose it is.
type claimed struct {
	owner
	since  time.Time      // when the owner wrote last; zero: the server does not say
	fields map[string]any // in the format of FieldsV1
}

// place is a value in a live object that we did not declare.
type place struct {
	keys   []string // the way to it in the format of FieldsV1: the same in each version of the object
	tokens []string // the same as a JSON pointer into the object that was scanned
	value  any
	owners []owner // none: nobody owns it
}

func (p place) pointer() string { return pointerOf(p.tokens) }

func pointerOf(tokens []string) string {
	var b strings.Builder
	for _, tok := range tokens {
		b.WriteString("/" + escapePointer(tok))
	}
	return b.String()
}

func (p place) child(key, token string, value any) place {
	return place{keys: append(slices.Clip(p.keys), key), tokens: append(slices.Clip(p.tokens), token), value: value}
}

// others returns the field sets in u but for our own: the one of our apply, and
// what the server filled in after one of our patches, which is nobody's.
func (c *Cluster) others(u *unstructured.Unstructured) []claimed {
	list, _, _ := unstructured.NestedFieldNoCopy(u.Object, "metadata", "managedFields")
	entries, _ := list.([]any)
	var out []claimed
	for _, e := range entries {
		m, _ := e.(map[string]any)
		fields, _ := m["fieldsV1"].(map[string]any)
		if fields == nil || (m["manager"] == c.cfg.FieldManager && m["subresource"] == nil) {
			continue
		}
		manager, _ := m["manager"].(string)
		sub, _ := m["subresource"].(string)
		at, _ := m["time"].(string)
		since, _ := time.Parse(time.RFC3339, at) // what cannot be read is not said
		out = append(out, claimed{owner{manager, sub}, since, fields})
	}
	return out
}

// scan finds what stands in the closed parts of a live object and that our
// field set does not have. It walks the content and not the other field sets,
// so that what was taken out of the managed fields is found too.
type scan struct {
	kind   string
	closed []closedField // of the kind
	// covered reports whether a place may be as it is; nil: none may.
	covered func(place) bool
	out     []place
}

// undeclared scans u. ours is our field set.
func (c *Cluster) undeclared(id plan.ObjectID, u *unstructured.Unstructured, ours map[string]any, covered func(place) bool) []place {
	s := scan{kind: id.Kind, closed: closedIn(id.Kind), covered: covered}
	s.children(place{value: content(u.Object)}, node{ours: ours, others: c.others(u)})
	return s.out
}

// node is where a scan is: the field sets there, and in what region it stands.
type node struct {
	ours   map[string]any // nil: we declare nothing here
	others []claimed
	region region
	around map[string]any // the map that the place is in
	// within says that the place is part of one that may be as it is.
	within bool
}

// children visits what is in p. It reports whether something there is ours, or
// may be as it is.
func (s *scan) children(p place, n node) (keep bool) {
	switch v := p.value.(type) {
	case map[string]any:
		pod := slices.ContainsFunc(podLists, func(k string) bool { return n.ours["f:"+k] != nil })
		for _, k := range slices.Sorted(maps.Keys(v)) {
			next := n
			next.around = v
			next.region = enter(n.region, s.closed, p.tokens, k, v[k], pod)
			if s.visit(p.child("f:"+k, k, v[k]), next, false) {
				keep = true
			}
		}
	case []any:
		for i, e := range v {
			if s.visit(p.child(n.element(e, i), strconv.Itoa(i), e), n, true) {
				keep = true
			}
		}
	}
	return keep
}

// visit judges p, whose last key leads to it from n. item says that it is an
// element of a list.
func (s *scan) visit(p place, n node, item bool) (keep bool) {
	key := p.keys[len(p.keys)-1]
	ours, declared := n.ours[key].(map[string]any)
	mirrored := n.ours["f:"+mirrors[strings.TrimPrefix(key, "f:")]] != nil
	n.ours, n.others = ours, below(n.others, key)
	if declared {
		// A leaf may be an empty map that we declared, and others added to.
		if len(ours) > 0 || slices.ContainsFunc(n.others, func(c claimed) bool { return len(c.fields) > 0 }) {
			s.children(p, n)
		}
		return true
	}
	if n.region == open {
		return s.children(p, n)
	}
	for _, c := range n.others {
		if _, itself := c.fields["."]; itself || len(c.fields) == 0 {
			p.owners = append(p.owners, c.owner)
		}
	}
	if len(p.owners) == 0 {
		switch {
		case len(n.others) > 0: // somebody owns parts of it
			found := len(s.out)
			keep = s.children(p, n)
			if m, _ := p.value.(map[string]any); !item && m != nil {
				s.whole(p, m, found)
			}
			return keep
		case n.within || mirrored || s.isDefault(p, key, n.around, item):
			return false
		}
	}
	if s.covered != nil {
		if s.covered(p) {
			n.within = true
			s.children(p, n)
			return true
		}
		if !item { // a list or a map goes whole, unless a part of it may stay
			found := len(s.out)
			if s.children(p, n) {
				return true
			}
			s.out = s.out[:found]
		}
	}
	s.out = append(s.out, p)
	return false
}

// whole puts p in the place of what was found in it, which is s.out from found on,
// if that is all of it: many a map is not valid when it is empty.
func (s *scan) whole(p place, m map[string]any, found int) {
	parts := s.out[found:]
	if len(parts) == 0 || len(parts) != len(m) || slices.ContainsFunc(parts, func(part place) bool { return len(part.keys) != len(p.keys)+1 }) {
		return
	}
	for _, part := range parts {
		for _, o := range part.owners {
			if !slices.Contains(p.owners, o) {
				p.owners = append(p.owners, o)
			}
		}
	}
	s.out = append(s.out[:found], p)
}

// isDefault reports whether p, which nobody owns, says nothing: the server may
// have set it. around is the map that p is in.
func (s *scan) isDefault(p place, key string, around map[string]any, item bool) bool {
	if s.kind == "Pod" && putIntoPod(p.tokens, p.value) {
		return true
	}
	if item {
		return false
	}
	switch v := p.value.(type) {
	case map[string]any:
		if len(v) == 0 {
			return true
		}
	case []any:
		if len(v) == 0 {
			return true
		}
	}
	fills := serverFills[strings.TrimPrefix(key, "f:")]
	return fills != nil && fills(p.value, around)
}

// below returns the parts of sets under key.
func below(sets []claimed, key string) []claimed {
	var out []claimed
	for _, c := range sets {
		if fields, ok := c.fields[key].(map[string]any); ok {
			out = append(out, claimed{c.owner, c.since, fields})
		}
	}
	return out
}

// element returns how the field sets at n name the element e of a list. Where
// none does, it is named by what lists of its kind are keyed by.
func (n node) element(e any, i int) string {
	var names []string
	for _, set := range append([]claimed{{fields: n.ours}}, n.others...) {
		key, of := keyIn(set.fields, e)
		if key != "" {
			return key
		}
		if len(of) > 0 {
			names = of
		}
	}
	m, ok := e.(map[string]any)
	if !ok {
		return "v:" + string(mustJSON(e))
	}
	for _, by := range [][]string{names, {"name"}, {"uid"}, {"mountPath"}} {
		if key, _ := keyOf(m, by); key != "" {
			return key
		}
	}
	return "i:" + strconv.Itoa(i)
}

// keyIn returns the key of set that selects e, or "", and the names of the
// fields that the elements of its list are keyed by.
func keyIn(set map[string]any, e any) (key string, names []string) {
	m, _ := e.(map[string]any)
	if m == nil {
		key = "v:" + string(mustJSON(e))
		if set[key] != nil {
			return key, nil
		}
	}
	for k := range set {
		kind, name, _ := strings.Cut(k, ":")
		if kind == "v" && m == nil {
			if _, _, ok := step([]any{e}, k); ok { // the same value, escaped in another way
				return k, nil
			}
		}
		var keys map[string]any
		if kind == "k" && m != nil && names == nil && utiljson.Unmarshal([]byte(name), &keys) == nil {
			names = slices.Sorted(maps.Keys(keys))
		}
	}
	if names == nil {
		return "", nil
	}
	key, exact := keyOf(m, names)
	switch {
	case key != "" && set[key] != nil:
		return key, names
	case exact:
		return "", names
	}
	for k := range set {
		if _, _, ok := step([]any{e}, k); ok && strings.HasPrefix(k, "k:") {
			return k, names
		}
	}
	return "", names
}

// keyOf returns the key that selects m by names, or "". exact says that the
// server would write it in the same bytes: some characters it escapes differently.
func keyOf(m map[string]any, names []string) (key string, exact bool) {
	keys := map[string]any{}
	for _, n := range names {
		v, ok := m[n]
		if !ok {
			return "", false
		}
		keys[n] = v
	}
	if len(keys) == 0 {
		return "", false
	}
	b := mustJSON(keys)
	return "k:" + string(b), !bytes.ContainsAny(b, "\\<>&") && !bytes.ContainsFunc(b, func(r rune) bool { return r > '~' })
}

// foreignState is a keyed digest of everything in u that is closed and that we
// did not declare, and of the images that it names, wherever its kind has them. While
// it stays the same, there is nothing to judge anew.
func (c *Cluster) foreignState(id plan.ObjectID, u *unstructured.Unstructured) [32]byte {
	var b bytes.Buffer
	for _, p := range c.undeclared(id, u, c.entry(u), nil) {
		fmt.Fprintf(&b, "%q %q %s\n", p.keys, p.owners, mustJSON(p.value))
	}
	images, err := c.kinds.images(groupKind(id.Kind), content(u.Object))
	if err != nil { // which of it names an image is not known
		b.Write(mustJSON(content(u.Object)))
	}
	for _, im := range images {
		fmt.Fprintf(&b, "%q %q\n", im.pointer(), im.reference)
	}
	return c.keyed("foreign", b.Bytes())
}

// foreign returns what nobody declared or allowed in u, which is live or as
// our apply would leave it, and whose field set of ours is ours.
func (c *Cluster) foreign(o *desired, u *unstructured.Unstructured, ours map[string]any) ([]place, error) {
	ours = openEmpty(ours, o.u.Object, u.Object)
	found := c.undeclared(o.id, u, ours, func(p place) bool {
		return usual(o.id, u, p) || slices.ContainsFunc(c.cfg.Injectors, func(in Injector) bool { return in.covers(o.id, p) })
	})
	return c.foreignImages(o, u, ours, found)
}

// openEmpty returns set with the maps that are declared empty, and are not so in live, as
// maps of which we own no field: what stands in them is not ours, whether somebody says
// that it is theirs or nobody.
func openEmpty(set map[string]any, declared, live any) map[string]any {
	out := maps.Clone(set)
	for k, sub := range set {
		want, _, declares := step(declared, k)
		have, _, there := step(live, k)
		next, _ := sub.(map[string]any)
		if k == "." || !declares || !there {
			continue
		}
		empty, isMap := want.(map[string]any)
		more, _ := have.(map[string]any)
		if len(next) > 0 {
			out[k] = openEmpty(next, want, have)
		} else if isMap && len(empty) == 0 && len(more) > 0 {
			out[k] = map[string]any{".": map[string]any{}}
		}
	}
	return out
}

// foreignImages adds to found the images in u that are not among the desired
// object's and that no injector may add. Whose they are makes no difference, nor
// that nobody owns them.
func (c *Cluster) foreignImages(o *desired, u *unstructured.Unstructured, ours map[string]any, found []place) ([]place, error) {
	added, err := c.newImages(o, u)
	if err != nil {
		return nil, err
	}
	for _, im := range added {
		at := c.placeOf(u, im.tokens())
		holder := at
		if i := lastIndex(im.path); i > 0 {
			holder = c.placeOf(u, at.tokens[:i+1])
		}
		permitted := slices.ContainsFunc(c.cfg.Injectors, func(in Injector) bool { return in.covers(o.id, at) && in.permits(im.reference) })
		known := slices.ContainsFunc(found, func(p place) bool { return plan.Within(p.pointer(), at.pointer()) })
		if permitted || known {
			continue
		}
		if _, declared := follow(ours, holder.keys); !declared {
			at = holder
		}
		found = append(found, at)
	}
	return found, nil
}

// newImages returns the images in u that are not among the desired object's.
func (c *Cluster) newImages(o *desired, u *unstructured.Unstructured) ([]image, error) {
	gk := o.u.GroupVersionKind().GroupKind()
	wanted, err := c.kinds.images(gk, o.u.Object)
	if err != nil {
		return nil, err
	}
	there, err := c.kinds.images(gk, content(u.Object))
	if err != nil {
		return nil, fault.Wrap(fault.KindOf(err), opPlan, fault.HintOf(err), fmt.Errorf("%s: the live object: %w", o.id, err))
	}
	return slices.DeleteFunc(there, func(im image) bool {
		return slices.ContainsFunc(wanted, func(w image) bool { return w.reference == im.reference })
	}), nil
}

// tokens returns the way to the image as tokens of a JSON pointer.
func (im image) tokens() []string {
	out := make([]string, len(im.path))
	for i, p := range im.path {
		out[i] = fmt.Sprint(p)
	}
	return out
}

func (im image) pointer() string { return pointerOf(im.tokens()) }

// lastIndex returns where in path the last list index is, or -1.
func lastIndex(path []any) int {
	for i := len(path) - 1; i >= 0; i-- {
		if _, ok := path[i].(int); ok {
			return i
		}
	}
	return -1
}

// placeOf returns what is known about the value at tokens of u.
func (c *Cluster) placeOf(u *unstructured.Unstructured, tokens []string) place {
	p := place{value: u.Object}
	n := node{ours: c.entry(u), others: c.others(u)}
	var whole []owner // of something around the value
	for _, tok := range tokens {
		key := "f:" + tok
		next, _ := valueAt(p.value, "/"+escapePointer(tok))
		if _, list := p.value.([]any); list {
			i, _ := strconv.Atoi(tok)
			key = n.element(next, i)
		}
		p = p.child(key, tok, next)
		n.ours, _ = n.ours[key].(map[string]any)
		n.others = below(n.others, key)
		for _, o := range n.others {
			if len(o.fields) == 0 {
				whole = append(whole, o.owner)
			}
		}
	}
	p.owners = whole
	for _, o := range n.others {
		if len(o.fields) > 0 {
			p.owners = append(p.owners, o.owner)
		}
	}
	return p
}

// follow returns the part of a field set that keys lead to.
func follow(set map[string]any, keys []string) (map[string]any, bool) {
	for _, k := range keys {
		next, ok := set[k].(map[string]any)
		if !ok {
			return nil, false
		}
		set = next
	}
	return set, set != nil
}

// locate follows keys in v and returns the way as tokens of a JSON pointer.
func locate(v any, keys []string) (tokens []string, value any, ok bool) {
	for _, k := range keys {
		var tok string
		if v, tok, ok = step(v, k); !ok {
			return nil, nil, false
		}
		tokens = append(tokens, tok)
	}
	return tokens, v, true
}

// inLive returns places, which were found in another version of the object, as
// they stand in live. What live does not have is left out.
func inLive(places []place, live map[string]any) []place {
	var out []place
	for _, p := range places {
		if tokens, value, ok := locate(live, p.keys); ok {
			p.tokens, p.value = tokens, value
			out = append(out, p)
		}
	}
	return out
}

// operation is one step of a JSON patch (RFC 6902).
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// removal returns the patch that removes exactly places from live, and what it
// depends on: a list index is tested to name the element that was judged.
func removal(places []place, live map[string]any) (ops []operation, tests []string) {
	var tested []operation
	for _, p := range places {
		for _, at := range identity(p) {
			if v, ok := valueAt(live, at); ok && !slices.Contains(tests, at) {
				tests = append(tests, at)
				tested = append(tested, operation{"test", at, v})
			}
		}
	}
	ordered := slices.SortedFunc(slices.Values(places), func(a, b place) int { return compareTokens(b.tokens, a.tokens) })
	for _, p := range ordered { // the last first, so that no index moves
		ops = append(ops, operation{Op: "remove", Path: p.pointer()})
	}
	return append(tested, ops...), tests
}

// identity returns pointers to the values that tell the list elements on the way
// to p from others.
func identity(p place) []string {
	var out []string
	for i, k := range p.keys {
		kind, name, _ := strings.Cut(k, ":")
		at := pointerOf(p.tokens[:i+1])
		var keys map[string]any
		switch {
		case kind == "v":
			out = append(out, at)
		case kind == "k" && utiljson.Unmarshal([]byte(name), &keys) == nil:
			for _, f := range slices.Sorted(maps.Keys(keys)) {
				out = append(out, at+"/"+escapePointer(f))
			}
		}
	}
	return out
}

// compareTokens orders pointers, indexes as numbers.
func compareTokens(a, b []string) int {
	return slices.CompareFunc(a, b, func(x, y string) int {
		i, errX := strconv.Atoi(x)
		j, errY := strconv.Atoi(y)
		if errX == nil && errY == nil {
			return i - j
		}
		return strings.Compare(x, y)
	})
}

// errMoved says that the object was written while it was looked at.
var errMoved = errors.New("the object was written meanwhile")

// patch makes one JSON patch of the object with uid at version. When the object
// has moved, the error wraps [errMoved]. A dry run writes nothing.
func (s *session) patch(ctx context.Context, r resource, id plan.ObjectID, uid, version string, ops []operation, dryRun bool) (*unstructured.Unstructured, error) {
	bound := append([]operation{
		{"test", "/metadata/uid", uid},
		{"test", "/metadata/resourceVersion", version},
	}, ops...)
	o := metav1.PatchOptions{FieldManager: s.manager}
	if dryRun {
		o.DryRun = []string{metav1.DryRunAll}
	}
	body, err := json.Marshal(bound)
	if err != nil {
		return nil, err
	}
	live, err := s.client(r, id.Namespace).Patch(ctx, id.Name, types.JSONPatchType, body, o)
	switch {
	case err == nil:
		return live, nil
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return nil, fmt.Errorf("%w: %w", errMoved, err)
	case !apierrors.IsInvalid(err): // a test that fails is called invalid, like anything else that cannot be
		return nil, err
	}
	if now, gerr := s.get(ctx, r, id); gerr == nil && (now == nil || now.GetResourceVersion() != version || string(now.GetUID()) != uid) {
		return nil, fmt.Errorf("%w: %w", errMoved, err)
	}
	return nil, err
}

// additions are what is to be removed from a live object.
type additions struct {
	places []place // as they stand in live
	// returning are the pointers of images that an admission webhook adds again.
	returning []string
	ops       []operation
	tests     []string
}

// additionsIn returns what is foreign in live. after is live as our apply would
// leave it, whose field sets say exactly what we declare. Each place is tried
// out: what comes back when it is removed is a default of the server or of a
// webhook, and nobody's addition, unless it brings a new image.
func (t *Target) additionsIn(ctx context.Context, o *desired, res resource, live, after *unstructured.Unstructured) (additions, error) {
	found, err := t.c.foreign(o, after, t.c.entry(after))
	if err != nil {
		return additions{}, err
	}
	var a additions
	if a.places = inLive(found, live.Object); len(a.places) == 0 {
		return additions{}, nil
	}
	a.ops, a.tests = removal(a.places, live.Object)
	left, err := t.as.patch(ctx, res, o.id, string(live.GetUID()), live.GetResourceVersion(), a.ops, true)
	if apierrors.IsInvalid(err) && !errors.Is(err, errMoved) { // it cannot be removed by itself: a finding all the same
		return a, nil
	}
	if err != nil {
		return additions{}, t.c.apiError(opPlan, o.id, err)
	}
	images, err := t.c.newImages(o, left)
	if err != nil {
		return additions{}, err
	}
	a.places = slices.DeleteFunc(a.places, func(p place) bool {
		tokens, value, ok := locate(left.Object, p.keys)
		if !ok || !equalJSON(value, p.value) {
			return false
		}
		for _, im := range images {
			if plan.Within(pointerOf(tokens), im.pointer()) {
				a.returning = append(a.returning, p.pointer())
				return false
			}
		}
		return true
	})
	a.ops, a.tests = removal(a.places, live.Object)
	return a, nil
}

// differences returns a's places as what a plan shows. was is the live object, masked.
func (a additions) differences(was map[string]any) []difference {
	out := make([]difference, 0, len(a.places))
	for _, p := range a.places {
		value, _ := valueAt(was, p.pointer())
		out = append(out, difference{pointer: p.pointer(), from: value, had: true, foreign: true})
	}
	slices.SortFunc(out, func(x, y difference) int { return compareTokens(pointerTokens(x.pointer), pointerTokens(y.pointer)) })
	return out
}

// override is for a live object that others changed so that neither our apply
// nor a removal alone makes a valid one, such as a value beside a valueFrom, or
// another handler in a probe. It returns the patch that does both at once, and
// what it leads to by a dry run. When there is nothing foreign, or the patch is
// invalid too, the error is cause.
func (t *Target) override(ctx context.Context, o *desired, res resource, live *unstructured.Unstructured, cause error) (*unstructured.Unstructured, []operation, error) {
	goal, foreign, err := t.goal(o, live)
	if err != nil || !foreign {
		return nil, nil, cause
	}
	ops := edits(compare("", content(live.Object), content(goal), nil))
	after, err := t.as.patch(ctx, res, o.id, string(live.GetUID()), live.GetResourceVersion(), ops, true)
	if errors.Is(err, errMoved) {
		return nil, nil, err
	}
	if err != nil {
		return nil, nil, cause
	}
	return after, ops, nil
}

// goal returns live with what is declared and without what is foreign, and
// whether something was. It asks nobody: what a server would fill in is not there.
func (t *Target) goal(o *desired, live *unstructured.Unstructured) (goal map[string]any, foreign bool, err error) {
	found, err := t.c.foreign(o, live, t.c.entry(live))
	if err != nil {
		return nil, false, err
	}
	goal = runtime.DeepCopyJSON(live.Object)
	ops, _ := removal(found, live.Object)
	for _, op := range ops {
		if op.Op == "remove" {
			without(goal, pointerTokens(op.Path))
		}
	}
	goal, _ = overlay(goal, o.u.Object).(map[string]any)
	return goal, len(found) > 0, nil
}

// without removes the value at tokens from v, and returns v.
func without(v any, tokens []string) any {
	switch v := v.(type) {
	case map[string]any:
		if next, ok := v[tokens[0]]; ok && len(tokens) > 1 {
			v[tokens[0]] = without(next, tokens[1:])
		} else {
			delete(v, tokens[0])
		}
	case []any:
		i, err := strconv.Atoi(tokens[0])
		if err != nil || i < 0 || i >= len(v) {
			return v
		}
		if len(tokens) == 1 {
			return slices.Delete(v, i, i+1)
		}
		v[i] = without(v[i], tokens[1:])
	}
	return v
}

// overlay returns have with what want declares. Elements of lists are matched by
// name; a list of others is want's.
func overlay(have, want any) any {
	switch w := want.(type) {
	case map[string]any:
		h, ok := have.(map[string]any)
		if !ok {
			return want
		}
		out := maps.Clone(h)
		for k, v := range w {
			out[k] = overlay(h[k], v)
		}
		return out
	case []any:
		h, ok := have.([]any)
		if !ok || !named(h) || !named(w) {
			return want
		}
		out := slices.Clone(h)
		for _, e := range w {
			name := e.(map[string]any)["name"]
			i := slices.IndexFunc(out, func(x any) bool { return x.(map[string]any)["name"] == name })
			if i < 0 {
				out = append(out, e)
			} else {
				out[i] = overlay(out[i], e)
			}
		}
		return out
	}
	return want
}

// declaredState is a keyed digest of what live has where o declares something,
// and of what we own in it.
func (c *Cluster) declaredState(o *desired, live *unstructured.Unstructured) [32]byte {
	own, _ := c.ownState(live)
	return c.keyed("declared", own[:], mustJSON(restrict(content(live.Object), o.u.Object)))
}

// restrict returns the parts of have that want has too. Elements of lists are
// matched by name; a list of others is taken whole.
func restrict(have, want any) any {
	switch w := want.(type) {
	case map[string]any:
		h, ok := have.(map[string]any)
		if !ok {
			return have
		}
		out := map[string]any{}
		for k, v := range w {
			if e, ok := h[k]; ok {
				out[k] = restrict(e, v)
			}
		}
		return out
	case []any:
		h, ok := have.([]any)
		if !ok || !named(h) || !named(w) {
			return have
		}
		var out []any
		for _, e := range w {
			name := e.(map[string]any)["name"]
			if i := slices.IndexFunc(h, func(x any) bool { return x.(map[string]any)["name"] == name }); i >= 0 {
				out = append(out, restrict(h[i], e))
			}
		}
		return out
	}
	return have
}

// named reports whether every element of list has a name.
func named(list []any) bool {
	return !slices.ContainsFunc(list, func(e any) bool {
		m, _ := e.(map[string]any)
		name, ok := m["name"].(string)
		return !ok || name == ""
	})
}

// edits returns the patch that makes the differences. What goes comes last, from
// the end, so that no index moves.
func edits(ds []difference) []operation {
	var ops []operation
	for _, d := range ds {
		switch {
		case d.had && d.has:
			ops = append(ops, operation{"replace", d.pointer, d.to})
		case d.has:
			ops = append(ops, operation{"add", d.pointer, d.to})
		}
	}
	for _, d := range slices.Backward(ds) {
		if !d.has {
			ops = append(ops, operation{Op: "remove", Path: d.pointer})
		}
	}
	return ops
}
