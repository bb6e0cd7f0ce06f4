package kubernetes

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"

	"sigs.k8s.io/kustomize/api/konfig"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/kustomize/kyaml/openapi"
	sigsyaml "sigs.k8s.io/yaml"
)

const originAnnotation = "config.kubernetes.io/origin"

// loadSchema parses the built-in OpenAPI, which kustomize keeps in a global of
// its own: without it, builds that run at the same time would each parse it.
var loadSchema = sync.OnceFunc(func() { openapi.Schema() })

// kustomization copies the files that one build names, and nothing else, into
// memory. What is not there cannot be read by krusty, and what would make it
// reach for the network or run something is refused before it starts.
type kustomization struct {
	t    *Target
	tree *tree
	mem  filesys.FileSystem
	seen map[copied]int64      // files that were copied, with their size
	dirs map[string]*weight    // folders by path; nil: being read
	docs map[string][]declared // objects by file, to find lines
}

// kustomize renders the stack's kustomization.
func (t *Target) kustomize(tr *tree) ([]declared, error) {
	root, err := clean(t.spec.Dir, t.spec.Kustomize)
	if err != nil {
		return nil, err
	}
	k := &kustomization{t: t, tree: tr, mem: filesys.MakeFsInMemory(), seen: map[copied]int64{}, dirs: map[string]*weight{}, docs: map[string][]declared{}}
	if _, err := k.folder(root, true, 0); err != nil {
		return nil, err
	}
	loadSchema()
	m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(k.mem, path.Join("/", root))
	if err != nil {
		return nil, invalid("run kustomize build on the folder to see it on your machine", "%s: kustomize: %s", root, t.c.cfg.Masker.Scrub(err.Error()))
	}
	if m.Size() > maxObjects {
		return nil, invalid("split the stack", "the stack has more than %d objects", maxObjects)
	}
	var out []declared
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
	for _, f := range namedFiles(&spec) {
		to, err := k.inside(name, dir, f.path)
		if err != nil {
			return weight{}, err
		}
		size, err := k.copy(to, f.yaml)
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
	b, err = k.t.substitute(k.tree, name, b)
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
		if b, err = k.t.substitute(k.tree, name, b); err != nil {
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
	path string
	yaml bool
}

// namedFiles returns every other file that k names.
func namedFiles(k *types.Kustomization) []namedFile {
	var out []namedFile
	add := func(yaml bool, paths ...string) {
		for _, p := range paths {
			if p != "" {
				out = append(out, namedFile{p, yaml})
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
		add(false, s.EnvSources...)
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
	for _, g := range k.SecretGenerator {
		sources(g.KvPairSources)
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

// locate finds the file and line of a rendered object, and removes the note
// that kustomize left for it.
func (k *kustomization) locate(root string, v map[string]any) declared {
	d := declared{value: v, file: path.Join(root, konfig.DefaultKustomizationFileName())}
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
