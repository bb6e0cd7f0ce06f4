package kubernetes

import (
	"encoding/base64"
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode/utf8"

	"sigs.k8s.io/kustomize/api/konfig"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/holdfast-dev/holdfast/internal/mask"
)

const originAnnotation = "config.kubernetes.io/origin"

// kustomization copies the files that one build names, and nothing else, into
// memory. What is not there cannot be read by krusty, and what would make it
// reach for the network or run something is refused before it starts.
type kustomization struct {
	job  *job
	tree *tree
	mem  filesys.FileSystem
	seen map[copied]int64    // files that were copied, with their size
	dirs map[string]*weight  // folders by path; nil: being read
	docs map[string][]parsed // objects by file, to find lines
	// secrets are what secretGenerator reads and has as literals.
	secrets []string
}

// kustomize renders the stack's kustomization.
func (j *job) kustomize(tr *tree) ([]parsed, error) {
	root, err := clean(j.Dir, j.Kustomize)
	if err != nil {
		return nil, err
	}
	k := &kustomization{job: j, tree: tr, mem: filesys.MakeFsInMemory(), seen: map[copied]int64{}, dirs: map[string]*weight{}, docs: map[string][]parsed{}}
	if _, err := k.folder(root, true, 0); err != nil {
		return nil, err
	}
	m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(k.mem, path.Join("/", root))
	if err != nil {
		return nil, invalid("run kustomize build on the folder to see it on your machine", "%s: kustomize: %s", root, k.masked(err.Error()))
	}
	if m.Size() > maxObjects {
		return nil, invalid("split the stack", "the stack has more than %d objects", maxObjects)
	}
	var out []parsed
	for _, r := range m.Resources() {
		v, err := r.Map()
		if err != nil {
			return nil, invalid("", "%s: kustomize: %w", root, err)
		}
		if v, err = normalNumbers(v); err != nil {
			return nil, invalid("", "%s: kustomize: %w", root, err)
		}
		if out, err = flatten(out, k.locate(root, v), 0); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// weight is what krusty does for one mention of a folder: it loads a folder
// again for each mention, and so what is in it.
type weight struct {
	visits  int
	objects int   // at least; a file counts as one where it cannot be told
	bytes   int64 // of all files
}

// add counts one mention of what weighs o. It refuses what would keep krusty,
// which cannot be stopped, busy for too long.
func (w *weight) add(name string, o weight) error {
	w.visits += o.visits
	w.objects += o.objects
	w.bytes += o.bytes
	const hint = "mention each base and each file once"
	switch {
	case w.visits > maxVisits:
		return invalid(hint, "%s: more than %d folders, each counted as often as it is mentioned", name, maxVisits)
	case w.objects > maxObjects:
		return invalid(hint, "%s: more than %d objects, each counted as often as its file is mentioned", name, maxObjects)
	case w.bytes > maxTreeBytes:
		return invalid(hint, "%s: more than %d bytes, each file counted as often as it is mentioned", name, maxTreeBytes)
	}
	return nil
}

// folder checks and copies the kustomization in dir, and what it names, once,
// and returns what one mention of dir weighs.
func (k *kustomization) folder(dir string, root bool, depth int) (weight, error) {
	if w, there := k.dirs[dir]; w != nil {
		return *w, nil
	} else if there {
		return weight{}, invalid("remove one of the references", "%s: the folder is a base of itself", dir)
	}
	k.dirs[dir] = nil
	if depth > maxDepth {
		return weight{}, invalid("", "%s: bases are nested deeper than %d", dir, maxDepth)
	}
	name, b, err := k.file(dir)
	if err != nil {
		return weight{}, err
	}
	var spec types.Kustomization
	if err := spec.Unmarshal(b); err != nil { // the very call that krusty makes, so both see the same
		return weight{}, invalid("", "%s: %w", name, err)
	}
	if err := refuse(name, &spec); err != nil {
		return weight{}, err
	}
	spec.FixKustomization()
	if root {
		if b, err = withOrigin(b); err != nil {
			return weight{}, invalid("", "%s: %w", name, err)
		}
	}
	if err := k.mem.WriteFile("/"+name, b); err != nil {
		return weight{}, invalid("", "%s: %w", name, err)
	}
	w := weight{visits: 1, objects: len(spec.ConfigMapGenerator) + len(spec.SecretGenerator), bytes: int64(len(b))}
	for _, p := range append(spec.Resources, spec.Components...) {
		to, err := k.inside(name, dir, p)
		if err != nil {
			return weight{}, err
		}
		isDir, err := k.tree.isDir(to)
		if err != nil {
			return weight{}, err
		}
		var one weight
		if isDir {
			one, err = k.folder(to, false, depth+1)
		} else {
			one.bytes, err = k.copy(to, true)
			one.objects = max(1, len(k.docs[to]))
		}
		if err == nil {
			err = w.add(name, one)
		}
		if err != nil {
			return weight{}, err
		}
	}
	for _, g := range spec.SecretGenerator {
		for _, l := range g.LiteralSources {
			k.hide(l)
		}
	}
	for _, f := range namedFiles(&spec) {
		to, err := k.inside(name, dir, f.path)
		if err != nil {
			return weight{}, err
		}
		size, err := k.copy(to, f.yaml)
		if err == nil && !f.yaml {
			err = k.source(to, f)
		}
		if err == nil {
			err = w.add(name, weight{bytes: size})
		}
		if err != nil {
			return weight{}, err
		}
	}
	k.dirs[dir] = &w
	return w, nil
}

// file returns the one kustomization file of dir, with variables replaced.
func (k *kustomization) file(dir string) (string, []byte, error) {
	var name string
	for _, n := range konfig.RecognizedKustomizationFileNames() {
		p := path.Join(dir, n)
		if _, _, err := k.tree.resolve(p); err != nil {
			continue
		}
		if name != "" {
			return "", nil, invalid("keep one of them", "%s and %s are both there", name, p)
		}
		name = p
	}
	if name == "" {
		return "", nil, invalid("add one, or use manifests instead of kustomize", "%s has no kustomization.yaml", dir)
	}
	b, err := k.tree.read(name)
	if err != nil {
		return "", nil, err
	}
	b, err = k.job.substitute(k.tree, name, b)
	return name, b, err
}

// refuse stops what runs code, reaches for the network, or changes kustomize for
// every other build of this process.
func refuse(name string, k *types.Kustomization) error {
	for _, f := range []struct {
		field string
		there bool
		hint  string
	}{
		{"openapi", len(k.OpenAPI) > 0, "remove it; it would change how other stacks are rendered"},
		{"helmCharts", len(k.HelmCharts) > 0, "commit the rendered chart"},
		{"helmChartInflationGenerator", len(k.HelmChartInflationGenerator) > 0, "commit the rendered chart"},
		{"helmGlobals", k.HelmGlobals != nil, "commit the rendered chart"},
		{"generators", len(k.Generators) > 0, "use configMapGenerator or secretGenerator, or commit the result"},
		{"transformers", len(k.Transformers) > 0, "use the fields of kustomization.yaml, or a patch"},
		{"validators", len(k.Validators) > 0, "write a policy"},
	} {
		if f.there {
			return invalid(f.hint, "%s: %s is not supported", name, f.field)
		}
	}
	return nil
}

// inside returns the path in the repository that a kustomization names. What
// kustomize could take for a URL is refused, also where such a folder exists:
// kustomize tries a clone first.
func (k *kustomization) inside(file, dir, p string) (string, error) {
	low := strings.ToLower(p)
	for _, s := range []string{":", "@", "?", "//", "github.com", ".git"} {
		if strings.Contains(low, s) {
			return "", invalid("copy what it names into the repository", "%s: %q is, or looks like, a remote resource", file, p)
		}
	}
	to, err := clean(dir, p)
	if err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	return to, nil
}

// copy brings one file into memory, once, and returns its size. In YAML
// variables are replaced.
func (k *kustomization) copy(name string, isYAML bool) (int64, error) {
	key := copied{name, isYAML}
	if size, done := k.seen[key]; done {
		return size, nil
	}
	b, err := k.tree.read(name)
	if err != nil {
		return 0, err
	}
	if isYAML {
		if b, err = k.job.substitute(k.tree, name, b); err != nil {
			return 0, err
		}
		// Kustomize is lax about duplicate keys. A JSON patch is a list, no object.
		if k.docs[name], err = decode(name, b); err != nil && !errors.Is(err, errNotObject) {
			return 0, err
		}
	}
	if err := k.mem.WriteFile("/"+name, b); err != nil {
		return 0, invalid("", "%s: %w", name, err)
	}
	k.seen[key] = int64(len(b))
	return int64(len(b)), nil
}

type copied struct {
	name string
	yaml bool
}

type namedFile struct {
	path   string
	yaml   bool
	env    bool // lines NAME=VALUE
	secret bool // a source of secretGenerator
}

// namedFiles returns every other file that k names.
func namedFiles(k *types.Kustomization) []namedFile {
	var out []namedFile
	add := func(yaml bool, paths ...string) {
		for _, p := range paths {
			if p != "" {
				out = append(out, namedFile{path: p, yaml: yaml})
			}
		}
	}
	add(true, k.Crds...)
	add(true, k.Configurations...)
	for _, p := range append(k.Patches, k.PatchesJson6902...) { //nolint:staticcheck // deprecated, but krusty still reads what it names
		add(true, p.Path)
	}
	for _, p := range k.PatchesStrategicMerge { //nolint:staticcheck // as above
		// krusty loads what does not parse as an object, from a URL too. No
		// URL is an object: it would need a line break, which no URL has.
		var inline map[string]any
		if s := string(p); sigsyaml.Unmarshal([]byte(s), &inline) != nil || inline["kind"] == nil {
			add(true, s)
		}
	}
	for _, r := range k.Replacements {
		add(true, r.Path)
	}
	sources := func(s types.KvPairSources) {
		files := len(out)
		add(false, s.EnvSources...)
		for i := range out[files:] {
			out[files+i].env = true
		}
		for _, f := range s.FileSources {
			if _, p, ok := strings.Cut(f, "="); ok {
				f = p
			}
			add(false, f)
		}
	}
	for _, g := range k.ConfigMapGenerator {
		sources(g.KvPairSources)
	}
	public := len(out)
	for _, g := range k.SecretGenerator {
		sources(g.KvPairSources)
	}
	for i := range out[public:] {
		out[public+i].secret = true
	}
	return out
}

// withOrigin asks kustomize to say which file each object comes from.
func withOrigin(b []byte) ([]byte, error) {
	var m map[string]any
	if err := sigsyaml.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	for key := range m {
		if strings.EqualFold(key, "buildMetadata") { // as encoding/json, which krusty uses, compares names
			delete(m, key)
		}
	}
	m["buildMetadata"] = []string{types.OriginAnnotations}
	return sigsyaml.Marshal(m)
}

// hide has masked replace text, and what stands behind each = in it, as env
// files and literals are written.
func (k *kustomization) hide(text string) {
	k.secrets = append(k.secrets, text)
	for line := range strings.Lines(text) {
		if _, v, ok := strings.Cut(line, "="); ok {
			k.secrets = append(k.secrets, strings.Trim(strings.TrimSpace(v), `"'`))
		}
	}
}

// source looks at a file that a generator reads. Kustomize quotes a line that is
// no UTF-8 as numbers, in which no secret would be found.
func (k *kustomization) source(name string, f namedFile) error {
	b, err := k.mem.ReadFile("/" + name)
	if err != nil {
		return invalid("", "%s: %w", name, err)
	}
	if f.env && !utf8.Valid(b) {
		return invalid("save it as UTF-8, or use files instead of envs", "%s: not UTF-8", name)
	}
	if f.secret {
		k.hide(string(b))
	}
	return nil
}

// maxMasked is up to how many bytes of secrets are searched for in a message.
const maxMasked = 1 << 20

// masked returns text, in which kustomize quotes what it read, without the values
// of Secrets: nothing has registered them before the first rendering succeeds.
func (k *kustomization) masked(text string) string {
	all := k.secrets
	for _, docs := range k.docs {
		for _, d := range docs {
			if isSecret(d.value) {
				all = append(append(all, texts(d.value["data"], 0)...), texts(d.value["stringData"], 0)...)
			}
		}
	}
	size := 0
	for _, s := range all {
		size += len(s)
	}
	m, err := mask.New(k.job.Mask)
	if err != nil || size > maxMasked {
		return "(its message is kept back: it may quote a secret)"
	}
	m.Register(all...)
	return m.Scrub(text)
}

// texts returns every string in v, also as what it is the base64 of.
func texts(v any, depth int) []string {
	var out []string
	switch v := v.(type) {
	case string:
		out = append(out, v)
		if b, err := base64.StdEncoding.DecodeString(v); err == nil {
			out = append(out, string(b))
		}
	case []any:
		for _, e := range v {
			if depth < maxDepth {
				out = append(out, texts(e, depth+1)...)
			}
		}
	case map[string]any:
		for _, e := range v {
			if depth < maxDepth {
				out = append(out, texts(e, depth+1)...)
			}
		}
	}
	return out
}

// locate finds the file and line of a rendered object, and removes the note
// that kustomize left for it.
func (k *kustomization) locate(root string, v map[string]any) parsed {
	d := parsed{value: v, file: path.Join(root, konfig.DefaultKustomizationFileName())}
	meta, _ := v["metadata"].(map[string]any)
	notes, _ := meta["annotations"].(map[string]any)
	note, _ := notes[originAnnotation].(string)
	if delete(notes, originAnnotation); len(notes) == 0 && meta != nil {
		delete(meta, "annotations")
	}
	var origin struct{ Path, ConfiguredIn string }
	if note == "" || sigsyaml.Unmarshal([]byte(note), &origin) != nil {
		return d
	}
	if origin.Path == "" {
		d.file = path.Join(root, origin.ConfiguredIn)
		return d
	}
	d.file = path.Join(root, origin.Path)
	name, _ := meta["name"].(string)
	kind, _ := v["kind"].(string)
	for _, doc := range k.docs[d.file] {
		docMeta, _ := doc.value["metadata"].(map[string]any)
		docName, _ := docMeta["name"].(string)
		if doc.value["kind"] == kind && strings.Contains(name, docName) { // a prefix or suffix may have been added
			if d.line = doc.line; name == docName {
				break
			}
		}
	}
	return d
}
