package terraform

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	hcljson "github.com/hashicorp/hcl/v2/json"

	"github.com/holdfast-dev/holdfast/internal/fault"
)

const (
	lockName = ".terraform.lock.hcl"
	// overrideName names the backend of a configuration that names none. The
	// tool merges *_override files over the others.
	overrideName = "holdfast_override.tf.json"
	// variablesName sorts behind every name of letters, so that nothing in the
	// repository overrides what the operator set.
	variablesName = "~~holdfast.auto.tfvars.json"
)

// configuration is a root module with every module that it calls.
type configuration struct {
	dir       string            // the root module's folder in the snapshot
	files     map[string][]byte // every file below the folders of the modules, by its path in the snapshot
	blocks    []block
	modules   []moduleCall
	backend   string // the type that the configuration names, or ""
	variables map[string]variable
	providers map[string]string // address without a default host → where it is required first
	lock      *lockFile
}

// block is one top-level block, or a provisioner or connection inside one.
type block struct {
	kind   string
	labels []string
	module string // "module.a.module.b"; "" is the root
	file   string
	line   int
}

type moduleCall struct {
	address, source, dir, pos string
}

type variable struct {
	sensitive bool
	plain     bool // takes a string as it stands
	pos       string
}

// rootSchema lists every block of the language of OpenTofu 1.12 and Terraform
// 1.14. A block that is not here is refused: nobody has thought about it.
var rootSchema = &hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{
	{Type: "terraform"},
	{Type: "provider", LabelNames: []string{"name"}},
	{Type: "variable", LabelNames: []string{"name"}},
	{Type: "locals"},
	{Type: "output", LabelNames: []string{"name"}},
	{Type: "module", LabelNames: []string{"name"}},
	{Type: "resource", LabelNames: []string{"type", "name"}},
	{Type: "data", LabelNames: []string{"type", "name"}},
	{Type: "ephemeral", LabelNames: []string{"type", "name"}},
	{Type: "action", LabelNames: []string{"type", "name"}},
	{Type: "check", LabelNames: []string{"name"}},
	{Type: "import"},
	{Type: "moved"},
	{Type: "removed"},
}}

var (
	// terraformSchema is an allow-list too. What it leaves out, and "encryption"
	// above all, can name programs that init runs before anything is judged.
	terraformSchema = &hcl.BodySchema{
		Attributes: []hcl.AttributeSchema{{Name: "required_version"}, {Name: "experiments"}},
		Blocks: []hcl.BlockHeaderSchema{
			{Type: "backend", LabelNames: []string{"type"}}, {Type: "cloud"}, {Type: "encryption"},
			{Type: "required_providers"}, {Type: "provider_meta", LabelNames: []string{"provider"}},
		},
	}
	remoteStateSchema = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "backend"}, {Name: "config"}}}
	backendSchema     = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "path"}, {Name: "workspace_dir"}}}
	moduleSchema      = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "source", Required: true}}}
	varSchema         = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "type"}, {Name: "sensitive"}}}
	objectSchema      = &hcl.BodySchema{
		Attributes: []hcl.AttributeSchema{{Name: "provider"}},
		Blocks:     []hcl.BlockHeaderSchema{{Type: "provisioner", LabelNames: []string{"type"}}, {Type: "connection"}, {Type: "lifecycle"}},
	}
	lifecycleSchema = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "ignore_changes"}}}
	checkSchema     = &hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{{Type: "data", LabelNames: []string{"type", "name"}}}}
	removedSchema   = &hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{
		{Type: "provisioner", LabelNames: []string{"type"}}, {Type: "connection"},
	}}
)

const opRender = "targets/terraform.Render"

func invalid(hint, format string, args ...any) error {
	return fault.New(fault.Invalid, opRender, hint, format, args...)
}

func denied(hint, format string, args ...any) error {
	return fault.New(fault.Denied, opRender, hint, format, args...)
}

// loader reads a configuration.
type loader struct {
	ctx   context.Context // for the one call of load that it lives for
	fsys  fs.FS
	limit Limits
	// protected is what no block and no text may name.
	protected Protected
	// permits are what the operator permits of what is refused otherwise.
	permits []string

	out   *configuration
	bytes int64
	dirs  map[string]bool     // folders whose files are read
	seen  map[string]bool     // templates whose calls are checked
	parse map[string]hcl.Body // parsed files, by path
}

// load reads the root module in dir and everything that it calls.
func load(ctx context.Context, fsys fs.FS, dir string, limit Limits, protected Protected, permits []string) (*configuration, error) {
	l := &loader{
		ctx: ctx, fsys: fsys, limit: limit, protected: protected, permits: permits, dirs: map[string]bool{}, seen: map[string]bool{}, parse: map[string]hcl.Body{},
		out: &configuration{dir: dir, files: map[string][]byte{}, variables: map[string]variable{}, providers: map[string]string{}},
	}
	for _, step := range []func() error{func() error { return l.module(dir, "", nil) }, l.reserved, l.readLock} {
		if err := step(); err != nil {
			return nil, l.out.quoting(err)
		}
	}
	return l.out, nil
}

// Permits are what an operator may permit an environment that is refused otherwise, since it
// runs before, or beside, what a plan shows.
var Permits = []string{"provisioners", "external", "local_command", "http", "ephemeral", "actions", "provider-functions", "ignore-all-changes"}

// permitted refuses what r is about, unless the operator permits it.
func (l *loader) permitted(what string, r hcl.Range, hint, format string, args ...any) error {
	if slices.Contains(l.permits, what) {
		return nil
	}
	return denied(hint+"; or the operator writes terraform.permit: ["+what+"]", "%s: "+format, append([]any{at(r)}, args...)...)
}

// position is how an error of this package begins that is about a line of a file.
var position = regexp.MustCompile(`(?:^|: )([^\s:]+):([0-9]+)(?::[0-9]+)?: `)

// quoting adds to an error about a line what stands there.
func (c *configuration) quoting(err error) error {
	m := position.FindStringSubmatch(err.Error())
	if m == nil {
		return err
	}
	n, _ := strconv.Atoi(m[2])
	text := c.excerpt(m[1], n)
	if text == "" {
		return err
	}
	return fault.Wrap(fault.KindOf(err), fault.OpOf(err), fault.HintOf(err), fmt.Errorf("%w: %s", err, text))
}

// maxExcerpt bounds what of a line is shown, in bytes.
const maxExcerpt = 160

// excerpt returns the text of a line; "" where there is none.
func (c *configuration) excerpt(file string, line int) string {
	lines := bytes.Split(c.files[file], []byte("\n"))
	if line < 1 || line > len(lines) {
		return ""
	}
	text := strings.TrimSpace(string(lines[line-1]))
	if len(text) > maxExcerpt {
		text = text[:maxExcerpt] + "…"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, ""))
}

// module reads one module; stack holds the folders of its callers.
func (l *loader) module(dir, address string, stack []string) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	if slices.Contains(stack, dir) {
		return invalid("break the cycle", "%s: the module calls itself", dir)
	}
	if err := l.readDir(dir); err != nil {
		return err
	}
	names, err := l.configFiles(dir)
	if err != nil {
		return err
	}
	m := &module{loader: l, dir: dir, address: address, stack: append(slices.Clone(stack), dir), required: map[string]string{}}
	for _, name := range names {
		if err := m.file(name); err != nil {
			return err
		}
	}
	return m.finish()
}

// readDir reads every file below dir once.
func (l *loader) readDir(dir string) error {
	for d := dir; ; d = path.Dir(d) { // a folder above covers it
		if l.dirs[d] {
			return nil
		}
		if d == "." {
			break
		}
	}
	l.dirs[dir] = true
	return fs.WalkDir(l.fsys, dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) && name == dir {
				return invalid("check the path", "%s: no such folder in the repository", dir)
			}
			return err
		}
		if d.IsDir() {
			if d.Name() == ".terraform" || d.Name() == ".git" {
				return fs.SkipDir
			}
			return nil
		}
		if leftOut(d.Name()) {
			return nil
		}
		if err := implicit(name); err != nil {
			return err
		}
		return l.readFile(name)
	})
}

// leftOut reports whether a file is for other commands of the tool than those
// that are run here. Init downloads the modules that tests call, so they do not
// get into the work directory.
func leftOut(base string) bool {
	return slices.ContainsFunc([]string{
		".tftest.hcl", ".tftest.json", ".tofutest.hcl", ".tofutest.json", ".tfquery.hcl", ".tfquery.json",
	}, func(end string) bool { return strings.HasSuffix(base, end) })
}

// implicit refuses files that the tool takes up without being told: programs
// beside the configuration, and state that init would move to the backend.
func implicit(name string) error {
	base := path.Base(name)
	switch {
	case strings.HasPrefix(base, "terraform-provisioner-"), strings.HasPrefix(base, "terraform-provider-"):
		return denied("remove it: providers come from the operator's mirror", "%s: the tool would run the file as a plugin", name)
	case strings.HasSuffix(base, ".tfstate"), strings.HasSuffix(base, ".tfstate.backup"),
		slices.Contains(strings.Split(path.Dir(name), "/"), "terraform.tfstate.d"):
		return denied("remove it: a state belongs into a backend, and it holds secrets", "%s: a state in the repository", name)
	}
	return nil
}

func (l *loader) readFile(name string) error {
	if _, ok := l.out.files[name]; ok {
		return nil
	}
	if len(l.out.files) >= l.limit.Files {
		return invalid("keep only what the stack needs in its folder", "%s: the stack has more than %d files", name, l.limit.Files)
	}
	info, err := fs.Stat(l.fsys, name) // through a symlink, as far as the snapshot allows it
	if err != nil {
		return invalid("replace the link by the file", "%s: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return invalid("use plain files; a link to a folder is not followed", "%s: not a plain file", name)
	}
	f, err := l.fsys.Open(name)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read from
	b, err := io.ReadAll(io.LimitReader(f, l.limit.Bytes-l.bytes+1))
	if err != nil {
		return err
	}
	if l.bytes += int64(len(b)); l.bytes > l.limit.Bytes {
		return invalid("keep only what the stack needs in its folder", "%s: the stack's files have more than %d bytes", name, l.limit.Bytes)
	}
	l.out.files[name] = b
	return nil
}

// configFiles returns the configuration files of the module in dir, in order.
func (l *loader) configFiles(dir string) ([]string, error) {
	var names []string
	stems := map[string]string{}
	for name := range l.out.files {
		if path.Dir(name) != dir || ignored(path.Base(name)) {
			continue
		}
		for _, ext := range configurationEnds {
			stem, ok := strings.CutSuffix(name, ext)
			if !ok {
				continue
			}
			// OpenTofu reads x.tofu instead of x.tf, Terraform the other way
			// round: what is judged must not depend on the tool.
			stem += strings.TrimPrefix(strings.TrimPrefix(ext, ".tf"), ".tofu")
			if other, ok := stems[stem]; ok {
				return nil, invalid("keep one of the two files", "%s and %s: OpenTofu and Terraform would read different ones",
					min(name, other), path.Base(max(name, other)))
			}
			stems[stem] = name
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, invalid("check the path", "%s: no configuration files", dir)
	}
	slices.Sort(names)
	return names, nil
}

// configurationEnds are how the names of configuration files end.
var configurationEnds = []string{".tf", ".tf.json", ".tofu", ".tofu.json"}

// ignored reports whether the tool leaves a file out by its name.
func ignored(base string) bool {
	return strings.HasPrefix(base, ".") || strings.HasSuffix(base, "~") ||
		strings.HasPrefix(base, "#") && strings.HasSuffix(base, "#")
}

// reserved refuses files in the root that would take the place of ours.
func (l *loader) reserved() error {
	for name := range l.out.files {
		if path.Dir(name) != l.out.dir {
			continue
		}
		base := path.Base(name)
		if strings.HasPrefix(base, "holdfast_override.") {
			return invalid("rename the file", "%s: the name is reserved", name)
		}
		auto := strings.HasSuffix(base, ".auto.tfvars") || strings.HasSuffix(base, ".auto.tfvars.json")
		if auto && base >= variablesName {
			return invalid("rename the file", "%s: it would override the operator's variables", name)
		}
	}
	return nil
}

func (l *loader) readLock() error {
	name := path.Join(l.out.dir, lockName)
	b, ok := l.out.files[name]
	if !ok {
		l.out.lock = &lockFile{name: name}
	} else {
		lock, err := parseLock(name, b)
		if err != nil {
			return err
		}
		l.out.lock = lock
	}
	for _, addr := range sortedKeys(l.out.providers) {
		e, found := l.out.lock.find(addr)
		switch {
		case !ok:
			return denied("run `tofu providers lock` and commit "+lockName,
				"%s: provider %s is required, and %s does not exist", l.out.providers[addr], addr, name)
		case !found:
			return denied("run `tofu providers lock` and commit "+lockName,
				"%s: provider %s is required, and %s does not lock it", l.out.providers[addr], addr, name)
		case len(e.h1()) == 0:
			return denied("run `tofu providers lock` and commit "+lockName,
				"%s: provider %s has no h1: hash, and other hashes cannot be checked against an unpacked mirror", e.pos, addr)
		}
	}
	return nil
}

// module is one module while it is read.
type module struct {
	*loader
	dir, address string
	stack        []string
	required     map[string]string // local name → provider address
	used         []use
	calls        []moduleCall
}

type use struct{ name, pos string }

func (m *module) file(name string) error {
	body, ok := m.parse[name]
	if !ok {
		err := m.paths(name)
		if err != nil {
			return err
		}
		if body, err = parseFile(name, m.out.files[name]); err != nil {
			return err
		}
		m.parse[name] = body
	}
	content, diags := body.Content(rootSchema)
	if diags.HasErrors() {
		return fault.Wrap(fault.Denied, opRender, "remove it: only blocks that Holdfast knows may stand there", undiagnosed(diags))
	}
	for _, b := range content.Blocks {
		if err := m.block(b); err != nil {
			return err
		}
	}
	return nil
}

// parseFile parses both syntaxes of the language.
func parseFile(name string, src []byte) (hcl.Body, error) {
	var f *hcl.File
	var diags hcl.Diagnostics
	if strings.HasSuffix(name, ".json") {
		f, diags = hcljson.Parse(src, name)
	} else {
		f, diags = hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	}
	if diags.HasErrors() {
		return nil, diagnostics(diags)
	}
	return f.Body, nil
}

// diagnostics turns the first error into one with file:line:column.
func diagnostics(diags hcl.Diagnostics) error {
	return fault.Wrap(fault.Invalid, opRender, "correct the configuration", undiagnosed(diags))
}

// undiagnosed is diagnostics before anybody has classified the error.
func undiagnosed(diags hcl.Diagnostics) error {
	for _, d := range diags {
		if d.Severity != hcl.DiagError {
			continue
		}
		pos := ""
		if d.Subject != nil {
			pos = fmt.Sprintf("%s:%d:%d: ", d.Subject.Filename, d.Subject.Start.Line, d.Subject.Start.Column)
		}
		return fmt.Errorf("%s%s: %s", pos, strings.ToLower(d.Summary[:1])+d.Summary[1:], d.Detail)
	}
	return nil
}

func at(r hcl.Range) string { return fmt.Sprintf("%s:%d", r.Filename, r.Start.Line) }

func (m *module) note(b *hcl.Block, labels ...string) {
	m.out.blocks = append(m.out.blocks, block{
		kind: b.Type, labels: append(labels, b.Labels...), module: m.address, file: b.DefRange.Filename, line: b.DefRange.Start.Line,
	})
}

func (m *module) block(b *hcl.Block) error {
	m.note(b)
	switch b.Type {
	case "terraform":
		return m.settings(b)
	case "provider":
		m.used = append(m.used, use{b.Labels[0], at(b.DefRange)})
	case "variable":
		return m.variable(b)
	case "module":
		return m.call(b)
	case "ephemeral", "action":
		what := map[string]string{"ephemeral": "ephemeral", "action": "actions"}[b.Type]
		if err := m.permitted(what, b.DefRange, "use a resource or a data source", "%s blocks run code that no plan shows", b.Type); err != nil {
			return err
		}
		return m.object(b)
	case "resource", "data":
		return m.object(b)
	case "check":
		content, _, diags := b.Body.PartialContent(checkSchema)
		if diags.HasErrors() {
			return diagnostics(diags)
		}
		for _, d := range content.Blocks {
			m.note(d)
			if err := m.object(d); err != nil {
				return err
			}
		}
	case "removed":
		return m.nested(b, removedSchema, nil)
	}
	return nil
}

func (m *module) settings(b *hcl.Block) error {
	content, diags := b.Body.Content(terraformSchema)
	if diags.HasErrors() {
		return fault.Wrap(fault.Denied, opRender, "remove it: only settings that Holdfast knows may stand in a terraform block", undiagnosed(diags))
	}
	for _, n := range content.Blocks {
		switch n.Type {
		case "encryption":
			return denied("remove it; the operator sets TF_ENCRYPTION in the environment's credentials",
				"%s: an encryption block can name a program that init would run", at(n.DefRange))
		case "cloud":
			return denied("name a backend that only keeps state", "%s: a cloud block runs the configuration elsewhere", at(n.DefRange))
		case "backend":
			m.note(n)
			if m.address != "" {
				continue // the tool ignores it outside the root module
			}
			if err := m.backend(n); err != nil {
				return err
			}
		case "required_providers":
			if err := m.requiredProviders(n); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *module) backend(b *hcl.Block) error {
	kind := b.Labels[0]
	if m.out.backend != "" && m.out.backend != kind {
		return invalid("keep one backend", "%s: a second backend", at(b.DefRange))
	}
	switch kind {
	case "remote":
		return denied("name a backend that only keeps state", "%s: backend \"remote\" runs the configuration elsewhere", at(b.DefRange))
	case "local":
		content, _, diags := b.Body.PartialContent(backendSchema)
		if diags.HasErrors() {
			return diagnostics(diags)
		}
		for name, a := range content.Attributes {
			return denied("remove it: without a backend the state is kept in the daemon's state directory",
				"%s: backend \"local\" may not choose its %s", at(a.Range), name)
		}
		return nil // ours takes its place
	}
	m.out.backend = kind
	for _, name := range backendPrograms {
		content, _, diags := b.Body.PartialContent(&hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: name}}})
		if diags.HasErrors() {
			return diagnostics(diags)
		}
		if a, ok := content.Attributes[name]; ok {
			return backendProgram(name, a.Range)
		}
		content, _, diags = b.Body.PartialContent(&hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{{Type: name}}})
		if diags.HasErrors() {
			return diagnostics(diags)
		}
		for _, n := range content.Blocks {
			return backendProgram(name, n.DefRange)
		}
	}
	return nil
}

// backendPrograms are the settings of backends that name a program, or a file
// that can name one: a kubeconfig's exec, an AWS profile's credential_process.
var backendPrograms = []string{"exec", "config_path", "config_paths", "shared_config_files", "shared_credentials_file", "shared_credentials_files"}

func backendProgram(name string, r hcl.Range) error {
	return denied("remove it; the operator sets the backend's credentials in the environment",
		"%s: a backend's %q can name a program that init would run", at(r), name)
}

// remoteState judges the one data source that is part of the tool: it reads any
// state that its backend can reach.
func (m *module) remoteState(b *hcl.Block) error {
	content, _, diags := b.Body.PartialContent(remoteStateSchema)
	if diags.HasErrors() {
		return diagnostics(diags)
	}
	const hint = "write the backend and its config out as plain values, with a backend other than \"local\""
	a, ok := content.Attributes["backend"]
	if !ok {
		return denied(hint, "%s: terraform_remote_state without a backend", at(b.DefRange))
	}
	switch literal(a.Expr) {
	case "":
		return denied(hint, "%s: the backend of terraform_remote_state is not a plain string", at(a.Range))
	case "local":
		return denied(hint, "%s: terraform_remote_state with backend \"local\" reads files of the daemon's machine, the state of other stacks among them", at(a.Range))
	}
	config, ok := content.Attributes["config"]
	if !ok {
		return nil
	}
	pairs, diags := hcl.ExprMap(config.Expr)
	if diags.HasErrors() {
		return denied(hint, "%s: the config of terraform_remote_state is not written out", at(config.Range))
	}
	for _, p := range pairs {
		name := hcl.ExprAsKeyword(p.Key)
		if name == "" {
			name = literal(p.Key)
		}
		if name == "" {
			return denied(hint, "%s: the config of terraform_remote_state has a computed name", at(config.Range))
		}
		if slices.Contains(backendPrograms, name) {
			return backendProgram(name, p.Key.Range())
		}
	}
	return nil
}

func (m *module) requiredProviders(b *hcl.Block) error {
	attrs, diags := b.Body.JustAttributes()
	if diags.HasErrors() {
		return diagnostics(diags)
	}
	for name, a := range attrs {
		addr := "hashicorp/" + strings.ToLower(name)
		if pairs, diags := hcl.ExprMap(a.Expr); !diags.HasErrors() {
			for _, p := range pairs {
				if literal(p.Key) != "source" && hcl.ExprAsKeyword(p.Key) != "source" {
					continue
				}
				src := literal(p.Value)
				if src == "" {
					return invalid("write the source as a plain string", "%s: the source of provider %q is not a plain string", at(a.Range), name)
				}
				if !sourceRule.MatchString(src) {
					return denied("write [host/]namespace/type", "%s: the source %q of provider %q is not an address", at(a.Range), src, name)
				}
				addr = strings.ToLower(src)
			}
		}
		if strings.Count(addr, "/") == 0 {
			addr = "hashicorp/" + addr
		}
		for _, host := range defaultHosts {
			addr = strings.TrimPrefix(addr, host+"/")
		}
		m.required[name] = addr
		if !builtin(addr) {
			m.require(addr, at(a.Range))
		}
	}
	return nil
}

func (m *module) require(addr, pos string) {
	if at, ok := m.out.providers[addr]; !ok || pos < at {
		m.out.providers[addr] = pos
	}
}

// sourceRule is what a provider's source address looks like. It has no path in it.
var sourceRule = regexp.MustCompile(`^(?:[0-9A-Za-z][0-9A-Za-z.-]*(?::[0-9]+)?/)?(?:[0-9A-Za-z][0-9A-Za-z_-]*/)?[0-9A-Za-z][0-9A-Za-z_-]*$`)

// builtin reports whether a provider is part of the tool.
func builtin(addr string) bool { return strings.HasPrefix(addr, "terraform.io/builtin/") }

// literal returns the value of an expression that is a plain string, or "". In
// JSON that is one without templates: the tools do not agree where those count.
func literal(e hcl.Expression) string {
	text := func(ctx *hcl.EvalContext) string {
		v, diags := e.Value(ctx)
		if diags.HasErrors() || v.IsNull() || !v.IsKnown() || v.Type().FriendlyName() != "string" {
			return ""
		}
		return v.AsString()
	}
	s := text(nil)
	if s != text(&hcl.EvalContext{}) {
		return ""
	}
	return s
}

func (m *module) variable(b *hcl.Block) error {
	if m.address != "" {
		return nil
	}
	content, _, diags := b.Body.PartialContent(varSchema)
	if diags.HasErrors() {
		return diagnostics(diags)
	}
	v := variable{plain: true, pos: at(b.DefRange)}
	if a, ok := content.Attributes["type"]; ok {
		v.plain = slices.Contains([]string{"string", "number", "bool", "any"}, hcl.ExprAsKeyword(a.Expr))
	}
	if a, ok := content.Attributes["sensitive"]; ok {
		val, diags := a.Expr.Value(nil)
		// Anything but a clear no counts as yes.
		v.sensitive = diags.HasErrors() || val.IsNull() || val.Type().FriendlyName() != "bool" || val.True()
	}
	if old, ok := m.out.variables[b.Labels[0]]; ok { // an override file
		v.sensitive = v.sensitive || old.sensitive
		v.plain = v.plain && old.plain
	}
	m.out.variables[b.Labels[0]] = v
	return nil
}

func (m *module) call(b *hcl.Block) error {
	content, _, diags := b.Body.PartialContent(moduleSchema)
	a := content.Attributes["source"]
	if a == nil {
		if strings.Contains(b.DefRange.Filename, "override.") {
			return nil // an override of something else
		}
		return diagnostics(diags)
	}
	src := literal(a.Expr)
	hint := "copy the module into the repository and call it by a path that starts with ./ or ../"
	if !strings.HasPrefix(src, "./") && !strings.HasPrefix(src, "../") || strings.Contains(src, "${") {
		return denied(hint, "%s: module %q comes from elsewhere (%q)", at(a.Range), b.Labels[0], src)
	}
	dir := path.Join(m.dir, src)
	if !fs.ValidPath(dir) {
		return denied(hint, "%s: module %q (%q) is outside the repository", at(a.Range), b.Labels[0], src)
	}
	address := "module." + b.Labels[0]
	if m.address != "" {
		address = m.address + "." + address
	}
	m.calls = append(m.calls, moduleCall{address: address, source: src, dir: dir, pos: at(a.Range)})
	return nil
}

// deniedData are data sources that run programs or call out while the plan is
// made, which is before any policy sees it.
var deniedData = map[string]string{
	"external":      "runs a program",
	"local_command": "runs a program",
	"http":          "sends requests",
}

// object handles resources and data sources.
func (m *module) object(b *hcl.Block) error {
	if b.Type == "data" {
		if what, ok := deniedData[b.Labels[0]]; ok {
			if err := m.permitted(b.Labels[0], b.DefRange, "give the stack the value as a variable", "data source %q %s while the plan is made", b.Labels[0], what); err != nil {
				return err
			}
		}
		if b.Labels[0] == "terraform_remote_state" {
			if err := m.remoteState(b); err != nil {
				return err
			}
		}
	}
	if err := m.protectBlock(b); err != nil {
		return err
	}
	name, _, _ := strings.Cut(b.Labels[0], "_")
	return m.nested(b, objectSchema, func(c *hcl.BodyContent) {
		if a, ok := c.Attributes["provider"]; ok {
			if tr, diags := hcl.AbsTraversalForExpr(a.Expr); !diags.HasErrors() {
				name = tr.RootName()
			} else if tr, diags := hcl.RelTraversalForExpr(a.Expr); !diags.HasErrors() && len(tr) > 0 {
				if attr, ok := tr[0].(hcl.TraverseAttr); ok {
					name = attr.Name
				}
			}
		}
		m.used = append(m.used, use{name, at(b.DefRange)})
	})
}

// nested notes the provisioners and connections inside b.
func (m *module) nested(b *hcl.Block, schema *hcl.BodySchema, also func(*hcl.BodyContent)) error {
	content, _, diags := b.Body.PartialContent(schema)
	if diags.HasErrors() {
		return diagnostics(diags)
	}
	for _, n := range content.Blocks {
		if n.Type == "lifecycle" {
			if err := m.lifecycle(n); err != nil {
				return err
			}
			continue
		}
		m.note(n, b.Labels...)
		// The tool looks for others as programs in the root module's folder.
		if n.Type == "provisioner" && !slices.Contains([]string{"file", "local-exec", "remote-exec"}, n.Labels[0]) {
			return denied("use a provisioner that is part of the tool", "%s: provisioner %q is a program", at(n.DefRange), n.Labels[0])
		}
		if err := m.permitted("provisioners", n.DefRange, "make an image, or a resource, that needs none", "%s blocks run programs that no plan shows", n.Type); err != nil {
			return err
		}
	}
	if also != nil {
		also(content)
	}
	return nil
}

// lifecycle refuses a resource of which no change is ever seen.
func (m *module) lifecycle(b *hcl.Block) error {
	content, _, diags := b.Body.PartialContent(lifecycleSchema)
	if diags.HasErrors() {
		return diagnostics(diags)
	}
	a, ok := content.Attributes["ignore_changes"]
	if !ok || hcl.ExprAsKeyword(a.Expr) != "all" && literal(a.Expr) != "all" {
		return nil
	}
	return m.permitted("ignore-all-changes", a.Range, "list the attributes that others set", "ignore_changes = all hides every drift of the resource")
}

// finish resolves what the files of the module only name, and follows its calls.
func (m *module) finish() error {
	for _, u := range m.used {
		addr, ok := m.required[u.name]
		switch {
		case ok:
		case u.name == "terraform":
			continue
		default:
			addr = "hashicorp/" + u.name
		}
		if !builtin(addr) {
			m.require(addr, u.pos)
		}
	}
	for _, c := range m.calls {
		if len(m.out.modules) >= m.limit.Modules {
			return invalid("call fewer modules", "%s: more than %d module calls", c.pos, m.limit.Modules)
		}
		m.out.modules = append(m.out.modules, c)
		if err := m.module(c.dir, c.address, m.stack); err != nil {
			return err
		}
	}
	return nil
}

// document names the document that describes the configuration.
func (c *configuration) document() string { return path.Join(c.dir, "configuration.json") }

// describe returns the configuration without any value of it, for policy.
func (c *configuration) describe() any {
	blocks := make([]any, len(c.blocks))
	for i, b := range c.blocks {
		labels := make([]any, len(b.labels))
		for j, l := range b.labels {
			labels[j] = l
		}
		blocks[i] = map[string]any{"type": b.kind, "labels": labels, "module": b.module, "file": b.file, "line": int64(b.line)}
	}
	modules := make([]any, len(c.modules))
	for i, m := range c.modules {
		modules[i] = map[string]any{"address": m.address, "source": m.source, "dir": m.dir}
	}
	providers := make([]any, 0, len(c.providers))
	for _, addr := range sortedKeys(c.providers) {
		e, _ := c.lock.find(addr)
		providers = append(providers, map[string]any{"source": addr, "version": e.version})
	}
	return map[string]any{
		"configuration": map[string]any{
			"root": c.dir, "backend": c.backend, "blocks": blocks, "modules": modules, "providers": providers,
		},
	}
}

// locate returns where the resource with a plan's address is declared, and what stands there.
func (c *configuration) locate(moduleAddress, mode, kind, name string) (at, excerpt string) {
	want := "resource"
	if mode == "data" {
		want = "data"
	}
	moduleAddress = withoutIndexes(moduleAddress)
	for _, b := range c.blocks {
		if b.kind == want && b.module == moduleAddress && slices.Equal(b.labels, []string{kind, name}) {
			return fmt.Sprintf("%s:%d", b.file, b.line), c.excerpt(b.file, b.line)
		}
	}
	return "", ""
}

// withoutIndexes turns `module.a["x"].module.b[0]` into "module.a.module.b".
func withoutIndexes(address string) string {
	var out strings.Builder
	depth, quoted, escaped := 0, false, false
	for _, r := range address {
		switch {
		case escaped:
			escaped = false
		case quoted && r == '\\':
			escaped = true
		case r == '"' && depth > 0:
			quoted = !quoted
		case quoted:
		case r == '[':
			depth++
		case r == ']':
			depth--
		case depth == 0:
			out.WriteRune(r)
		}
	}
	return out.String()
}
