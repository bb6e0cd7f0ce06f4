package terraform_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-dev/holdfast/internal/box"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/internal/mask"
	"github.com/holdfast-dev/holdfast/internal/testenv"
	"github.com/holdfast-dev/holdfast/sources"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/targets/targetstest"
	"github.com/holdfast-dev/holdfast/targets/terraform"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = `s3cr3t/"<&>+ värld`

// engine is a tool with what its stacks need.
type engine struct {
	name, binary, host, mirror string
}

// lock is the lock file of a stack that uses providers.
func (e engine) lock(t testing.TB, providers map[string]string) []byte {
	t.Helper()
	full := map[string]string{}
	for name, version := range providers {
		full[e.host+"/hashicorp/"+name] = version
	}
	b, err := terraform.Lock(e.mirror, full)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var hosts = map[string]string{"tofu": "registry.opentofu.org", "terraform": "registry.terraform.io"}

// each runs test with every engine there is.
func each(t *testing.T, test func(t *testing.T, e engine)) {
	t.Helper()
	mirror, err := testenv.ProviderMirror(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, binary := range testenv.Terraforms(t) {
		t.Run(name, func(t *testing.T) {
			test(t, engine{name: name, binary: binary, host: hosts[name], mirror: mirror})
		})
	}
}

// lab is one stack's place to work.
type lab struct {
	engine
	cfg   terraform.Config
	spec  terraform.Spec
	log   *buffer
	world string // where the stack's files go
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newLab(t testing.TB, e engine) *lab {
	t.Helper()
	m, err := mask.New([]byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	run, err := os.MkdirTemp("", "hf") // a short path: providers make sockets in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, _ := filepath.Glob(filepath.Join(run, "hf-*[0-9a-f]")); len(left) > 0 {
			t.Errorf("work directories are left behind: %v", left)
		}
		if err := os.RemoveAll(run); err != nil {
			t.Error(err)
		}
	})
	l := &lab{engine: e, log: &buffer{}, world: t.TempDir()}
	uid, gid := box.User() // the tool's
	if err := os.Chown(l.world, uid, gid); err != nil {
		t.Fatal(err)
	}
	l.cfg = terraform.Config{
		Binary: e.binary, Mirror: e.mirror, StateDir: t.TempDir(), RunDir: run, Masker: m,
		Log:     slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Environ: map[string]string{}, Timeout: 2 * time.Minute, Grace: 20 * time.Second,
		Sandbox: terraform.Sandbox{Write: []string{l.world}}, Permit: []string{"provisioners"},
	}
	l.spec = terraform.Spec{Stack: "shop", Environment: "test", Dir: "infra"}
	return l
}

func (l *lab) target(t testing.TB) *terraform.Target {
	t.Helper()
	target, err := terraform.New(l.cfg, l.spec)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func (l *lab) deploy(t testing.TB, target *terraform.Target, s *sources.Snapshot) (targets.Rendered, plan.Plan) {
	t.Helper()
	r, p := planned(t, target, s)
	if _, err := target.Apply(context.Background(), targetstest.Grant(context.Background(), t, p)); err != nil {
		t.Fatalf("Apply: %v", err)
	}
	return r, p
}

func planned(t testing.TB, target *terraform.Target, s *sources.Snapshot) (targets.Rendered, plan.Plan) {
	t.Helper()
	r, err := target.Render(context.Background(), s)
	if err != nil {
		t.Fatalf("Render: %v", err)
	}
	p, err := target.Plan(context.Background(), r)
	if err != nil {
		t.Fatalf("Plan: %v", err)
	}
	return r, p
}

func snapshot(id string, files map[string]string) *sources.Snapshot {
	fsys := fstest.MapFS{}
	for name, content := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(content)}
	}
	return &sources.Snapshot{Revision: sources.Revision{Source: "repo", ID: id}, FS: fsys}
}

const settings = `
terraform {
  required_providers {
    local = { source = "hashicorp/local", version = "~> 1.4" }
    time  = { source = "hashicorp/time" }
  }
}
variable "dir" { type = string }
variable "password" {
  type      = string
  sensitive = true
}
locals { derived = "p=${var.password}" }
`

func TestConformance(t *testing.T) {
	each(t, func(t *testing.T, e engine) {
		lock := e.lock(t, map[string]string{"local": "1.4.0", "time": "0.14.2"})
		targetstest.Run(t, func(t *testing.T) targetstest.World {
			l := newLab(t, e)
			l.cfg.Environ["TF_VAR_password"] = secret
			l.spec.Variables = map[string]string{"dir": l.world}
			state := func(id, first string, withSecond bool) *sources.Snapshot {
				main := settings + fmt.Sprintf(`
resource "local_file" "first" {
  filename = "${var.dir}/first"
  content  = %q
}
resource "time_sleep" "between" {
  create_duration = "200ms"
  triggers        = { first = local_file.first.filename }
}
output "derived" {
  value     = local.derived
  sensitive = true
}
`, first)
				if withSecond {
					main += `
resource "local_file" "second" {
  filename          = "${var.dir}/second"
  sensitive_content = local.derived
  depends_on        = [time_sleep.between]
}
`
				}
				return snapshot(id, map[string]string{"infra/main.tf": main, "infra/.terraform.lock.hcl": string(lock)})
			}
			return targetstest.World{
				Target: l.target(t),
				V1:     state("c1", "one", true),
				V2:     state("c2", "two", true),
				Shrunk: state("c3", "one", false),
				Secret: secret,
				Disturb: func(t testing.TB) {
					if err := os.WriteFile(filepath.Join(l.world, "first"), []byte("edited"), 0o600); err != nil {
						t.Fatal(err)
					}
				},
				Read:            func(t testing.TB) string { return readDir(t, l.world) },
				Log:             l.log.String,
				VolatilePayload: true,
			}
		})
	})
}

// readDir describes the files in dir.
func readDir(t testing.TB, dir string) string {
	t.Helper()
	var out strings.Builder
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s: %q\n", e.Name(), b)
	}
	return out.String()
}

// wantFault fails t unless err has the kind and its text or hint the words.
func wantFault(t testing.TB, err error, kind fault.Kind, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want %s: %q", kind, words)
	}
	if got := fault.KindOf(err); got != kind {
		t.Errorf("kind %s, want %s: %v", got, kind, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error()+"\n"+fault.HintOf(err), w) {
			t.Errorf("error %q (hint %q) does not say %q", err, fault.HintOf(err), w)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	good := func() (terraform.Config, terraform.Spec) {
		m, err := mask.New([]byte("0123456789abcdef"))
		if err != nil {
			t.Fatal(err)
		}
		return terraform.Config{Binary: "/bin/tofu", Mirror: "/mirror", StateDir: "/state", RunDir: "/run/x", Masker: m},
			terraform.Spec{Stack: "shop", Environment: "test", Dir: "infra"}
	}
	if _, err := terraform.New(good()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*terraform.Config, *terraform.Spec){
		"no masker":           func(c *terraform.Config, _ *terraform.Spec) { c.Masker = nil },
		"relative binary":     func(c *terraform.Config, _ *terraform.Spec) { c.Binary = "tofu" },
		"no mirror":           func(c *terraform.Config, _ *terraform.Spec) { c.Mirror = "" },
		"mirror with a quote": func(c *terraform.Config, _ *terraform.Spec) { c.Mirror = `/m" } direct {} #` },
		"no state directory":  func(c *terraform.Config, _ *terraform.Spec) { c.StateDir = "" },
		"long run directory":  func(c *terraform.Config, _ *terraform.Spec) { c.RunDir = "/" + strings.Repeat("x", 90) },
		"stack with a path":   func(_ *terraform.Config, s *terraform.Spec) { s.Stack = "../other" },
		"environment ..":      func(_ *terraform.Config, s *terraform.Spec) { s.Environment = ".." },
		"workspace with path": func(_ *terraform.Config, s *terraform.Spec) { s.Workspace = "a/b" },
		"folder outside":      func(_ *terraform.Config, s *terraform.Spec) { s.Dir = "../x" },
		"CLI arguments":       func(c *terraform.Config, _ *terraform.Spec) { c.Environ = map[string]string{"TF_CLI_ARGS_plan": "x"} },
		"CLI configuration":   func(c *terraform.Config, _ *terraform.Spec) { c.Environ = map[string]string{"TF_CLI_CONFIG_FILE": "x"} },
		"reattach": func(c *terraform.Config, _ *terraform.Spec) {
			c.Environ = map[string]string{"TF_REATTACH_PROVIDERS": "x"}
		},
	} {
		c, s := good()
		spoil(&c, &s)
		if _, err := terraform.New(c, s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRenderRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		files map[string]string
		vars  map[string]string
		kind  fault.Kind
		words []string
	}{
		"syntax":       {files: map[string]string{"infra/main.tf": "locals {\n  a = \n}\n"}, kind: fault.Invalid, words: []string{"infra/main.tf:2:"}},
		"JSON syntax":  {files: map[string]string{"infra/main.tf.json": "{\n \"locals\": }"}, kind: fault.Invalid, words: []string{"infra/main.tf.json:2:"}},
		"no folder":    {files: map[string]string{"x/main.tf": ""}, kind: fault.Invalid, words: []string{"infra", "no such folder"}},
		"no files":     {files: map[string]string{"infra/readme": ""}, kind: fault.Invalid, words: []string{"no configuration files"}},
		"unknown word": {files: map[string]string{"infra/main.tf": "rocket \"x\" {}"}, kind: fault.Denied, words: []string{"infra/main.tf:1:1"}},
		"registry module": {files: map[string]string{"infra/main.tf": "module \"a\" {\n  source = \"hashicorp/consul/aws\"\n}"},
			kind: fault.Denied, words: []string{"infra/main.tf:2", "into the repository"}},
		"git module":     {files: map[string]string{"infra/main.tf": `module "a" { source = "git::https://example.com/x.git?ref=v1" }`}, kind: fault.Denied},
		"file module":    {files: map[string]string{"infra/main.tf": `module "a" { source = "/etc" }`}, kind: fault.Denied},
		"dynamic module": {files: map[string]string{"infra/main.tf": `module "a" { source = "./${var.x}" }`}, kind: fault.Denied},
		"dynamic JSON":   {files: map[string]string{"infra/main.tf.json": `{"module":{"a":{"source":"./${var.x}"}}}`}, kind: fault.Denied},
		"module outside": {files: map[string]string{"infra/main.tf": `module "a" { source = "../../x" }`}, kind: fault.Denied, words: []string{"outside"}},
		"nested module elsewhere": {files: map[string]string{"infra/main.tf": `module "a" { source = "../m" }`,
			"m/main.tf": `module "b" { source = "example.com/x" }`}, kind: fault.Denied, words: []string{"m/main.tf:1"}},
		"cycle": {files: map[string]string{"infra/main.tf": `module "a" { source = "../infra" }`}, kind: fault.Invalid, words: []string{"calls itself"}},
		"local backend path": {files: map[string]string{"infra/main.tf": "terraform {\n backend \"local\" {\n  path = \"/etc/x\"\n }\n}"},
			kind: fault.Denied, words: []string{"infra/main.tf:3", "path"}},
		"local backend, JSON": {files: map[string]string{"infra/main.tf.json": `{"terraform":{"backend":{"local":{"workspace_dir":"x"}}}}`}, kind: fault.Denied},
		"cloud":               {files: map[string]string{"infra/main.tf": "terraform {\n cloud {}\n}"}, kind: fault.Denied, words: []string{"cloud"}},
		"remote":              {files: map[string]string{"infra/main.tf": "terraform {\n backend \"remote\" {}\n}"}, kind: fault.Denied, words: []string{"remote"}},
		"two backends":        {files: map[string]string{"infra/a.tf": "terraform {\n backend \"s3\" {}\n}", "infra/b.tf": "terraform {\n backend \"gcs\" {}\n}"}, kind: fault.Invalid, words: []string{"second backend"}},
		"reserved override":   {files: map[string]string{"infra/main.tf": "", "infra/holdfast_override.tofu": ""}, kind: fault.Invalid, words: []string{"reserved"}},
		"later variables":     {files: map[string]string{"infra/main.tf": "", "infra/~~z.auto.tfvars": ""}, kind: fault.Invalid, words: []string{"override the operator"}},
		"two dialects":        {files: map[string]string{"infra/main.tf": "", "infra/main.tofu": ""}, kind: fault.Invalid, words: []string{"keep one"}},
		"no lock file":        {files: map[string]string{"infra/main.tf": `resource "local_file" "a" {}`}, kind: fault.Denied, words: []string{"infra/main.tf:1", "providers lock"}},
		"no lock file, data":  {files: map[string]string{"infra/main.tf": "check \"c\" {\n data \"dns_a\" \"a\" {}\n}"}, kind: fault.Denied, words: []string{"hashicorp/dns"}},
		"not locked": {files: map[string]string{"infra/main.tf": `provider "aws" {}`,
			"infra/.terraform.lock.hcl": `provider "registry.opentofu.org/hashicorp/local" { version = "1" }`}, kind: fault.Denied, words: []string{"hashicorp/aws"}},
		"only zh": {files: map[string]string{"infra/main.tf": `provider "aws" {}`,
			"infra/.terraform.lock.hcl": `provider "registry.opentofu.org/hashicorp/aws" {
  version = "1.0.0"
  hashes  = ["zh:00"]
}`}, kind: fault.Denied, words: []string{"h1:"}},
		"bad lock file": {files: map[string]string{"infra/main.tf": "", "infra/.terraform.lock.hcl": `provider "../x/y" { version = "1" }`}, kind: fault.Invalid},
		"undeclared variable": {files: map[string]string{"infra/main.tf": ""}, vars: map[string]string{"x": "1"}, kind: fault.Invalid,
			words: []string{`"x"`}},
		"value is not JSON": {files: map[string]string{"infra/main.tf": `variable "x" { type = list(string) }`}, vars: map[string]string{"x": "a,b"},
			kind: fault.Invalid, words: []string{"infra/main.tf:1", "JSON"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, engine{binary: "/nonexistent", mirror: "/nonexistent"})
			l.spec.Variables = c.vars
			_, err := l.target(t).Render(t.Context(), snapshot("c", c.files))
			wantFault(t, err, c.kind, c.words...)
		})
	}
}

// TestRenderRefusesBeforePolicy has what would run or read something while the
// plan is made. Each refusal names line 2, or the place in its word.
func TestRenderRefusesBeforePolicy(t *testing.T) {
	t.Parallel()
	const program = `encryption {
  key_provider "external" "x" { command = ["/bin/sh", "-c", "id"] }
}`
	call := func(c string) string { return "locals {\n  a = " + c + "\n}" }
	for name, c := range map[string]struct{ file, src, word string }{
		"encryption":           {"main.tf", "terraform {\n" + program + "\n}", "TF_ENCRYPTION"},
		"encryption, tofu":     {"main.tofu", "terraform {\n" + program + "\n}", "TF_ENCRYPTION"},
		"encryption, override": {"x_override.tofu", "terraform {\n" + program + "\n}", "TF_ENCRYPTION"},
		"encryption, JSON":     {"x.tf.json", "{\"terraform\":\n{\"encryption\":{\"key_provider\":{\"external\":{\"x\":{\"command\":[\"id\"]}}}}}}", "TF_ENCRYPTION"},
		"encryption, array":    {"x.tofu.json", "[{\"terraform\":[{},\n{\"encryption\":[{}]}]}]", "TF_ENCRYPTION"},
		"unknown setting":      {"main.tf", "terraform {\n language = x\n}", "language"},
		"unknown block":        {"main.tf", "terraform {\n state_store \"x\" {}\n}", "state_store"},
		"unknown, JSON":        {"x.tf.json", "{\"terraform\":{\n\"language\":{}}}", "language"},
		"unknown top":          {"x.tf.json", "{\n\"rocket\":{}}", "rocket"},
		"ephemeral":            {"main.tf", "\nephemeral \"a_b\" \"c\" {}", "no plan shows"},
		"action":               {"main.tf", "\naction \"a_b\" \"c\" {}", "no plan shows"},
		"exec of a backend":    {"main.tf", "terraform {\n backend \"kubernetes\" {\n  exec {}\n }\n}", "infra/main.tf:3: a backend's \"exec\""},
		"exec, JSON":           {"x.tf.json", "{\"terraform\":{\"backend\":{\"kubernetes\":{\n\"exec\":{\"command\":\"id\"}}}}}", "exec"},
		"AWS profile":          {"main.tf", "terraform {\n backend \"s3\" { shared_config_files = [\"x\"] }\n}", "shared_config_files"},
		"provider path":        {"main.tf", "terraform {\n required_providers { a = { source = \"../../x\" } }\n}", "not an address"},
		"provisioner program":  {"main.tf", "resource \"terraform_data\" \"x\" {\n provisioner \"evil\" {}\n}", "evil"},
		"external":             {"main.tf", "\ndata \"external\" \"x\" {}", "runs a program"},
		"local_command":        {"main.tf", "\ndata \"local_command\" \"x\" {}", "runs a program"},
		"http in a check":      {"main.tf", "check \"c\" {\n data \"http\" \"x\" {}\n}", "sends requests"},
		"local state":          {"main.tf", "data \"terraform_remote_state\" \"x\" {\n backend = \"local\"\n}", "other stacks"},
		"local state, JSON":    {"x.tf.json", "{\"data\":{\"terraform_remote_state\":{\"x\":{\n\"backend\":\"local\"}}}}", "other stacks"},
		"template, JSON":       {"x.tf.json", "{\"data\":{\"terraform_remote_state\":{\"x\":{\n\"backend\":\"${\\\"local\\\"}\"}}}}", "plain string"},
		"computed state":       {"main.tf", "data \"terraform_remote_state\" \"x\" {\n backend = var.x\n}", "plain string"},
		"exec of a state":      {"main.tf", "data \"terraform_remote_state\" \"x\" {\n config = { \"exec\" = {} }\n backend = \"kubernetes\"\n}", "exec"},
		"computed config":      {"main.tf", "data \"terraform_remote_state\" \"x\" {\n config = var.x\n backend = \"s3\"\n}", "written out"},
		"JSON template source": {"x.tf.json", "{\"module\":{\"a\":{\n\"source\":\"./a%{ if true }b%{ endif }\"}}}", "elsewhere"},
		"absolute path":        {"main.tf", call(`file("/etc/passwd")`), "file()"},
		"core::":               {"main.tf", call(`core::filebase64("/etc/passwd")`), "filebase64()"},
		"up":                   {"main.tf", call(`filesha256("../../x")`), "filesha256()"},
		"up from the module":   {"main.tf", call(`fileexists("${path.module}/../../../d/plan")`), "fileexists()"},
		"up from the unknown":  {"main.tf", call(`filemd5("${var.x}/../y")`), "filemd5()"},
		"up in a call":         {"main.tf", call(`file(join("/", ["..", "x"]))`), "file()"},
		"either way":           {"main.tf", call(`file(var.x ? "a" : ("/etc/passwd"))`), "file()"},
		"home":                 {"main.tf", call(`templatefile("~/x", {})`), "templatefile()"},
		"pattern":              {"main.tf", call(`fileset(".", "../**")`), "fileset()"},
		"pathexpand":           {"main.tf", call(`pathexpand("~")`), "pathexpand()"},
		"path, JSON":           {"x.tf.json", "{\"locals\":{\n\"a\":[\"x ${file(\\\"/etc/passwd\\\")}\"]}}", "file()"},
		"path in a template":   {"main.tf", call(`templatefile("${path.module}/t", {})`), "infra/t:2"},
		"provisioner":          {"main.tf", "resource \"terraform_data\" \"x\" {\n provisioner \"local-exec\" {\n  command = \"id\"\n }\n}", `provisioner "local-exec" {`},
		"provisioner, JSON":    {"x.tf.json", "{\"resource\":{\"terraform_data\":{\"x\":{\n\"provisioner\":{\"local-exec\":{\"command\":\"id\"}}}}}}", "no plan shows"},
		"of what is removed":   {"main.tf", "removed {\n provisioner \"local-exec\" {}\n from = terraform_data.x\n}", "no plan shows"},
		"connection":           {"main.tf", "resource \"terraform_data\" \"x\" {\n connection {}\n}", "no plan shows"},
		"ignore all":           {"main.tf", "resource \"terraform_data\" \"x\" {\n lifecycle { ignore_changes = all }\n}", "hides every drift"},
		"ignore all, JSON":     {"x.tf.json", "{\"resource\":{\"terraform_data\":{\"x\":{\n\"lifecycle\":{\"ignore_changes\":\"all\"}}}}}", "hides every drift"},
		"provider's function":  {"main.tf", call(`provider::local::direxists("x")`), "provider::local::direxists()"},
	} {
		for _, dir := range []string{"infra/", "infra/m/"} { // the root module, and one that it calls
			if dir != "infra/" && strings.Contains(c.src, "backend \"") || strings.Contains(c.src, `"backend":{`) && dir != "infra/" {
				continue // the tool ignores a backend there
			}
			l := newLab(t, engine{binary: "/nonexistent", mirror: "/nonexistent"})
			l.cfg.Permit = nil
			files := map[string]string{"infra/zz.tf": "", "infra/t": "\n${file(\"/etc/passwd\")}", dir + c.file: c.src}
			word := c.word
			if dir != "infra/" {
				files["infra/zz.tf"] = `module "m" { source = "./m" }`
				files["infra/m/t"] = files["infra/t"]
				word = strings.Replace(word, "infra/", dir, 1)
			}
			_, err := l.target(t).Render(t.Context(), snapshot("c", files))
			if err == nil {
				t.Errorf("%s in %s: accepted", name, dir)
				continue
			}
			if pos := dir + c.file + ":2"; !strings.Contains(err.Error(), pos) && !strings.Contains(word, dir) {
				t.Errorf("%s: %v does not say %s", name, err, pos)
			}
			wantFault(t, err, fault.Denied, word)
			l.cfg.Permit = terraform.Permits
			permitted := []string{"ephemeral", "action", "external", "local_command", "http in a check", "provisioner", "provisioner, JSON", "of what is removed", "connection", "ignore all", "ignore all, JSON", "provider's function"}
			if _, err := l.target(t).Render(t.Context(), snapshot("c", files)); fault.KindOf(err) == fault.Denied && !strings.Contains(err.Error(), "tofu providers lock") == slices.Contains(permitted, name) && !strings.Contains(err.Error(), "is required") {
				t.Errorf("%s: permitted: %v", name, err)
			}
		}
	}
}

// TestRenderRefusesFiles has files that the tool takes up by their name.
func TestRenderRefusesFiles(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"terraform-provisioner-evil", "m/terraform-provider-x", "terraform.tfstate", "terraform.tfstate.d/x/y", "a.tfstate.backup"} {
		l := newLab(t, engine{binary: "/nonexistent", mirror: "/nonexistent"})
		_, err := l.target(t).Render(t.Context(), snapshot("c", map[string]string{"infra/main.tf": "", "infra/" + name: ""}))
		wantFault(t, err, fault.Denied, "infra/"+name)
	}
}

// TestInitTakesNothingElse has a test that calls a module from elsewhere, which
// init would download, and paths and settings that are fine.
func TestInitTakesNothingElse(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		_, p := planned(t, newLab(t, e).target(t), snapshot("c", map[string]string{
			"infra/tests/a.tftest.hcl":   "run \"x\" {\n module { source = \"git::http://127.0.0.1:1/x.git\" }\n}",
			"infra/.terraform/modules/x": "x",
			"infra/main.tf": `
terraform { required_version = ">= 1.3" }
module "m" { source = "../shared" }
resource "terraform_data" "x" { input = file("${path.module}/../shared/text") }
resource "terraform_data" "y" { count = 2 }`,
			"shared/main.tf": "resource \"terraform_data\" \"z\" { input = templatefile(\"${path.module}/../shared/text\", {}) }",
			"shared/text":    "text",
		}))
		if p.Keeps != 4 {
			t.Errorf("keeps %d, want 4", p.Keeps)
		}
	})
}

func TestRenderLimits(t *testing.T) {
	t.Parallel()
	files := map[string]string{"infra/a.tf": `module "a" { source = "./m" }`, "infra/m/a.tf": `module "b" { source = "../n" }`, "infra/n/a.tf": "# 0123456789"}
	for name, c := range map[string]struct {
		limits terraform.Limits
		word   string
	}{
		"files":   {terraform.Limits{Files: 2}, "files"},
		"bytes":   {terraform.Limits{Bytes: 70}, "bytes"},
		"modules": {terraform.Limits{Modules: 1}, "module calls"},
	} {
		l := newLab(t, engine{binary: "/nonexistent", mirror: "/nonexistent"})
		l.cfg.Limits = c.limits
		_, err := l.target(t).Render(t.Context(), snapshot("c", files))
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		wantFault(t, err, fault.Invalid, c.word)
	}
}

func TestRenderDescribesTheConfiguration(t *testing.T) {
	t.Parallel()
	l := newLab(t, engine{binary: "/nonexistent", mirror: "/nonexistent"})
	r, err := l.target(t).Render(t.Context(), snapshot("c", map[string]string{
		"infra/main.tf": "module \"m\" { source = \"../shared\" }\n" +
			"resource \"terraform_data\" \"x\" {\n  provisioner \"local-exec\" { command = \"id # hunter2-hunter2\" }\n}\n",
		"shared/main.tf.json": `{"data": {"terraform_remote_state": {"s": {"backend": "s3", "config": {"bucket": "b"}}}}}`,
	}))
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r.Documents)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"type":"provisioner"`, `"labels":["terraform_data","x","local-exec"]`, `"line":3`,
		`"labels":["terraform_remote_state","s"]`, `"module":"module.m"`, `"dir":"shared"`,
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the document lacks %s:\n%s", want, b)
		}
	}
	if strings.Contains(string(b), "hunter2") {
		t.Error("the document has a value of the configuration")
	}
}

func TestMirrorIsChecked(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		lock := e.lock(t, map[string]string{"time": "0.14.2"})
		snap := snapshot("c", map[string]string{"infra/main.tf": `resource "time_static" "a" {}`, "infra/.terraform.lock.hcl": string(lock)})

		mirror, err := testenv.ProviderMirror(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		l := newLab(t, e)
		l.cfg.Mirror = mirror
		target := l.target(t)
		r, p := planned(t, target, snap)
		if p.Empty() {
			t.Fatal("empty plan")
		}
		// A package gets another file after a plan has seen it.
		added := filepath.Join(mirror, e.host, "hashicorp", "time", "0.14.2", "linux_amd64", "extra")
		if err := os.WriteFile(added, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = target.Plan(t.Context(), r)
		wantFault(t, err, fault.Denied, "lock file does not list", ".terraform.lock.hcl:")
		if _, err := target.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); err == nil {
			t.Error("applied with a changed provider")
		}
		l.cfg.Mirror = t.TempDir()
		target = l.target(t)
		_, err = target.Plan(t.Context(), r)
		wantFault(t, err, fault.Denied, "has no provider")
	})
}

// TestEnvironmentHasNoEffect is not parallel: it sets the process environment.
func TestEnvironmentHasNoEffect(t *testing.T) {
	each(t, func(t *testing.T, e engine) {
		t.Setenv("TF_CLI_CONFIG_FILE", "/nonexistent")
		t.Setenv("TF_CLI_ARGS", "-nonsense")
		t.Setenv("TF_CLI_ARGS_plan", "-nonsense")
		t.Setenv("TF_WORKSPACE", "other")
		t.Setenv("TF_DATA_DIR", "/nonexistent")
		t.Setenv("TF_VAR_leak", "from outside")
		t.Setenv("LEAKED_CREDENTIAL", "from outside")
		l := newLab(t, e)
		l.spec.Variables = map[string]string{"n": "3", "names": `["a","b"]`}
		l.cfg.Environ["GIVEN"] = "given-to-the-tool"
		out := filepath.Join(l.world, "environ")
		target := l.target(t)
		_, p := planned(t, target, snapshot("c", map[string]string{"infra/main.tf": fmt.Sprintf(`
variable "leak" { default = "default" }
variable "n" { type = number }
variable "names" { type = list(string) }
resource "terraform_data" "x" {
  input = "${var.leak} ${var.n + 1} ${join("-", var.names)} ${terraform.workspace}"
  provisioner "local-exec" {
    command     = "env > %s"
    interpreter = ["/bin/sh", "-c"]
  }
}`, out), "infra/a.auto.tfvars": "n = 7"}))
		if got := toOf(p, "/input"); got != `"default 4 a-b default"` {
			t.Errorf("input %s", got)
		}
		if _, err := target.Apply(t.Context(), targetstest.Grant(t.Context(), t, p)); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "from outside") || strings.Contains(string(b), "nonexistent") || !strings.Contains(string(b), "GIVEN=given-to-the-tool") {
			t.Errorf("environment of the tool:\n%s", b)
		}
	})
}

func toOf(p plan.Plan, path string) string {
	for _, c := range p.Changes {
		for _, f := range c.Fields {
			if f.Path == path {
				return f.To
			}
		}
	}
	return ""
}

func TestPlanSaysWhatChanges(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		l := newLab(t, e)
		target := l.target(t)
		l.deploy(t, target, snapshot("c1", map[string]string{"infra/main.tf": `
resource "terraform_data" "kept" { input = "one" }
resource "terraform_data" "replaced" { triggers_replace = ["a"] }
resource "terraform_data" "removed" {}
resource "terraform_data" "old_name" {}
output "o" { value = "x" }`}))
		r, p := planned(t, target, snapshot("c2", map[string]string{"infra/main.tf": `
resource "terraform_data" "kept" { input = "two" }
resource "terraform_data" "replaced" { triggers_replace = ["b"] }
resource "terraform_data" "new_name" {}
moved {
  from = terraform_data.old_name
  to   = terraform_data.new_name
}
module "m" {
  source = "./m"
  count  = 1
}
output "o" { value = "y" }`, "infra/m/main.tf": "\nresource \"terraform_data\" \"made\" {}"}))
		var got []string
		for _, c := range p.Changes {
			got = append(got, fmt.Sprintf("%s %s @%s (%s)", c.Action, c.ID.Name, c.Source, c.Reason))
		}
		want := []string{
			"update output.o @ ()",
			"create module.m[0].terraform_data.made @infra/m/main.tf:2 ()",
			"update terraform_data.kept @infra/main.tf:2 ()",
			"update terraform_data.new_name @infra/main.tf:4 (moved from terraform_data.old_name)",
			"delete terraform_data.removed @ (delete because no resource config)",
			"replace terraform_data.replaced @infra/main.tf:3 (replace because cannot update)",
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("changes:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		for _, c := range p.Changes {
			if c.ID.Name == "terraform_data.kept" {
				want := []plan.Field{{Path: "/input", From: `"one"`, To: `"two"`}, {Path: "/output", From: `"one"`, To: `"(known after apply)"`}}
				if fmt.Sprint(c.Fields) != fmt.Sprint(want) || c.Before == "" || c.After == "" {
					t.Errorf("fields %v, want %v", c.Fields, want)
				}
			}
		}
		rec, err := target.Apply(t.Context(), targetstest.Grant(t.Context(), t, p))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range rec.Outcomes {
			if o.Err != "" {
				t.Errorf("%s: %s", o.ID, o.Err)
			}
		}
		if again, err := target.Plan(t.Context(), r); err != nil || !again.Empty() || again.Keeps == 0 {
			t.Errorf("a second plan: %v, keeps %d, %v", again.Changes, again.Keeps, err)
		}
		_, none := planned(t, target, snapshot("c3", map[string]string{"infra/main.tf": "locals {}"}))
		if p.Keeps != 4 || none.Keeps != 0 || none.Count(plan.Delete) != 5 { // an output among them
			t.Errorf("keeps %d, want 4; then %d, want 0: %s", p.Keeps, none.Keeps, none.Summary())
		}
		if _, err := os.Stat(filepath.Join(l.cfg.StateDir, "test", "shop", "terraform.tfstate")); err != nil {
			t.Errorf("the state: %v", err)
		}
	})
}

func TestFailedApplyTellsWhatWasDone(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		l := newLab(t, e)
		l.cfg.Environ["TF_VAR_password"] = secret
		target := l.target(t)
		_, p := planned(t, target, snapshot("c", map[string]string{"infra/main.tf": `
variable "password" { sensitive = true }
resource "terraform_data" "a" {}
resource "terraform_data" "b" {
  depends_on = [terraform_data.a]
  provisioner "local-exec" {
    command     = "echo \"$P\" | tee /dev/stderr; exit 3"
    environment = { P = nonsensitive(var.password) }
    interpreter = ["/bin/sh", "-c"]
  }
}
resource "terraform_data" "c" { depends_on = [terraform_data.b] }`}))
		rec, err := target.Apply(t.Context(), targetstest.Grant(t.Context(), t, p))
		wantFault(t, err, fault.Transient, "infra/main.tf", "exit status 3")
		got := map[string]string{}
		for _, o := range rec.Outcomes {
			got[o.ID.Name] = o.Err
		}
		if got["terraform_data.a"] != "" || !strings.Contains(got["terraform_data.b"], "failed") || got["terraform_data.c"] != "not reached" {
			t.Errorf("outcomes: %q", got)
		}
		if !strings.Contains(l.log.String(), "(masked ") {
			t.Errorf("the provisioner's output is not in the log:\n%s", l.log)
		}
		for where, text := range map[string]string{"error": err.Error() + fault.HintOf(err), "receipt": fmt.Sprint(rec), "log": l.log.String()} {
			if how := targetstest.Leaks(text, secret); how != "" {
				t.Errorf("the secret stands in the %s (%s):\n%s", where, how, text)
			}
		}
	})
}

// TestSecretsAreMasked has secrets in every place of a plan that can hold one.
func TestSecretsAreMasked(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		l := newLab(t, e)
		l.cfg.Environ["TF_VAR_given"] = secret + "-given"
		l.spec.Variables = map[string]string{"asked": secret + "-asked", "tree": `{"a": ["` + "deep-" + `secret-value"]}`}
		target := l.target(t)
		files := map[string]string{"infra/main.tf": `
variable "given" {}
variable "asked" {
  type      = string
  sensitive = true
}
variable "tree" {
  type      = map(list(string))
  sensitive = true
}
variable "fallback" {
  sensitive = true
  default   = "default-secret-value"
}
locals { both = "${var.given}/${var.asked}" }
resource "terraform_data" "a" {
  input = {
    plain   = local.both
    encoded = base64encode(var.given)
    json    = jsonencode({ x = var.asked })
    url     = urlencode(var.asked)
    lost    = nonsensitive(base64encode(var.asked))
    tree    = var.tree
    fb      = var.fallback
  }
}
module "m" {
  source   = "./m"
  password = var.given
  literal  = "literal-password-1"
}
output "o" {
  value     = local.both
  sensitive = true
}
output "tree" {
  value     = var.tree
  sensitive = true
}`, "infra/m/main.tf": `
variable "password" { sensitive = true }
variable "literal" { sensitive = true }
resource "terraform_data" "b" { input = "${var.password}${var.literal}" }
output "p" {
  value     = var.password
  sensitive = true
}`}
		secrets := []string{secret + "-given", secret + "-asked", "deep-secret-value", "default-secret-value"}
		check := func(where, text string) {
			t.Helper()
			for _, s := range secrets {
				if how := targetstest.Leaks(text, s); how != "" {
					t.Errorf("%q stands in the %s (%s):\n%s", s, where, how, text)
				}
			}
		}
		for round := range 2 {
			r, p := planned(t, target, snapshot(fmt.Sprint("c", round), files))
			if p.Empty() {
				t.Fatal("empty plan")
			}
			check("rendering", asJSON(t, []any{r.Digest, r.Documents, r.Artifacts}))
			check("plan", asJSON(t, p))
			rec, err := target.Apply(t.Context(), targetstest.Grant(t.Context(), t, p))
			if err != nil {
				t.Fatal(err)
			}
			check("receipt", asJSON(t, rec))
			// The second round changes a secret and removes what held the others.
			l.cfg.Environ["TF_VAR_given"] = secret + "-other"
			secrets = append(secrets, secret+"-other")
			target = l.target(t)
			files = maps.Clone(files)
			files["infra/main.tf"] = strings.Replace(files["infra/main.tf"], "resource \"terraform_data\" \"a\"", "resource \"terraform_data\" \"z\"", 1)
		}
		check("log", l.log.String())
	})
}

func asJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestStateLockIsRespected(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		l := newLab(t, e)
		started := filepath.Join(l.world, "started")
		target := l.target(t)
		snap := snapshot("c", map[string]string{"infra/main.tf": fmt.Sprintf(`
resource "terraform_data" "slow" {
  provisioner "local-exec" {
    command     = "/bin/touch %s; while [ ! -e %s/go ]; do /bin/sleep 0.05; done"
    interpreter = ["/bin/sh", "-c"]
  }
}`, started, l.world)})
		r, p := planned(t, target, snap)
		done := make(chan error, 1)
		go func() {
			_, err := target.Apply(t.Context(), targetstest.Grant(t.Context(), t, p))
			done <- err
		}()
		waitFor(t, started)

		other := newLab(t, e) // another daemon, with the same state
		other.cfg.StateDir = l.cfg.StateDir
		theirs, err := other.target(t).Plan(t.Context(), r) // which reads, and takes no lock
		if err != nil {
			t.Fatal(err)
		}
		_, err = other.target(t).Apply(t.Context(), targetstest.Grant(t.Context(), t, theirs))
		wantFault(t, err, fault.Waiting, "the state is locked", "Who:", "force-unlock")

		other.cfg.RunDir = l.cfg.RunDir // a second process on the same stack
		_, err = other.target(t).Plan(t.Context(), r)
		wantFault(t, err, fault.Waiting, "another process")

		if err := os.WriteFile(filepath.Join(l.world, "go"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestKilledApply interrupts an apply that does not listen.
func TestKilledApply(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		l := newLab(t, e)
		l.cfg.Grace = 500 * time.Millisecond
		started := filepath.Join(l.world, "started")
		target := l.target(t)
		r, p := planned(t, target, snapshot("c", map[string]string{"infra/main.tf": fmt.Sprintf(`
resource "terraform_data" "deaf" {
  provisioner "local-exec" {
    command     = "trap '' INT TERM; /bin/touch %s; exec /bin/sleep 600"
    interpreter = ["/bin/sh", "-c"]
  }
}`, started)}))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			waitFor(t, started)
			cancel()
		}()
		begun := time.Now()
		rec, err := target.Apply(ctx, targetstest.Grant(t.Context(), t, p))
		wantFault(t, err, fault.Transient, "interrupted")
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v is not context.Canceled", err)
		}
		if took := time.Since(begun); took > time.Minute {
			t.Errorf("it took %s", took)
		}
		if len(rec.Outcomes) != 1 || rec.Outcomes[0].Err == "" {
			t.Errorf("outcomes: %+v", rec.Outcomes)
		}
		for _, link := range glob(t, "/proc/[0-9]*/cwd") {
			if cwd, err := os.Readlink(link); err == nil && strings.HasPrefix(cwd, l.cfg.RunDir+"/") {
				t.Errorf("%s still runs in %s", link, cwd)
			}
		}
		// The kill left the tool's own lock: it says so and leaves it alone.
		if _, err := target.Plan(t.Context(), r); err != nil {
			wantFault(t, err, fault.Waiting, "the state is locked")
		}
	})
}

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// waitFor waits until a file is there.
func waitFor(t testing.TB, name string) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 6000 {
		if _, err := os.Stat(name); err == nil {
			return
		}
		<-tick.C
	}
	t.Errorf("%s does not appear", name)
}

func TestWorkspaceAndScripts(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		l := newLab(t, e)
		l.spec.Workspace = "blue"
		target := l.target(t)
		files := map[string]string{
			"infra/main.tf": `
module "m" { source = "../shared" }
resource "terraform_data" "x" { input = "${terraform.workspace} ${file("${path.module}/note.txt")} ${module.m.text}" }`,
			"infra/note.txt":    "note",
			"shared/main.tf":    `output "text" { value = file("${path.module}/files/text") }`,
			"shared/files/text": "text",
		}
		r, p := l.deploy(t, target, snapshot("c", files))
		if got := toOf(p, "/input"); got != `"blue note text"` {
			t.Errorf("input %s", got)
		}
		if _, err := os.Stat(filepath.Join(l.cfg.StateDir, "test", "shop", "workspaces", "blue", "terraform.tfstate")); err != nil {
			t.Error(err)
		}
		if again, err := target.Plan(t.Context(), r); err != nil || !again.Empty() {
			t.Errorf("a second plan: %v, %v", again.Changes, err)
		}
	})
}

func TestOutputIsBounded(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		l := newLab(t, e)
		l.cfg.Limits.PlanJSON = 1000
		target := l.target(t)
		r, err := target.Render(t.Context(), snapshot("c", map[string]string{
			"infra/main.tf": `resource "terraform_data" "x" { input = join("", [for i in range(1000) : "0123456789"]) }`}))
		if err != nil {
			t.Fatal(err)
		}
		_, err = target.Plan(t.Context(), r)
		wantFault(t, err, fault.Invalid, "more than the limit")
	})
}

func TestConfigurationErrorsAreInvalid(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		l := newLab(t, e)
		target := l.target(t)
		r, err := target.Render(t.Context(), snapshot("c", map[string]string{"infra/main.tf": "\nlocals { a = var.missing }"}))
		if err != nil {
			t.Fatal(err)
		}
		_, err = target.Plan(t.Context(), r)
		wantFault(t, err, fault.Invalid, "infra/main.tf:2:", "undeclared")
	})
}

// TestBackendIsChecked hides a backend in a file that only OpenTofu reads: with
// Terraform the state would be lost with the work directory.
func TestBackendIsChecked(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		l := newLab(t, e)
		target := l.target(t)
		r, err := target.Render(t.Context(), snapshot("c", map[string]string{
			"infra/main.tf":      `resource "terraform_data" "x" {}`,
			"infra/backend.tofu": "terraform {\n  backend \"http\" {\n    address = \"http://127.0.0.1:1/state\"\n    retry_max = 0\n  }\n}",
		}))
		if err != nil {
			t.Fatal(err)
		}
		_, err = target.Plan(t.Context(), r)
		if e.name == "terraform" {
			wantFault(t, err, fault.Invalid, "no backend")
		} else {
			wantFault(t, err, fault.Transient, "127.0.0.1:1")
		}
	})
}

// TestWorkFolderIsReadOnly has a configuration that writes into its own folder.
func TestWorkFolderIsReadOnly(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		for name, none := range map[string]bool{"sandbox": false, "none": true} {
			l := newLab(t, e)
			l.cfg.Sandbox.None = none
			lock := e.lock(t, map[string]string{"local": "1.4.0"})
			target := l.target(t)
			snap := snapshot("c", map[string]string{"infra/.terraform.lock.hcl": string(lock), "infra/main.tf": `
resource "local_file" "self" {
  filename = "${path.module}/main.tf"
  content  = "locals {}"
}`})
			r, p := planned(t, target, snap)
			_, err := target.Apply(t.Context(), targetstest.Grant(t.Context(), t, p))
			// Without a sandbox modes do not bind root: what was written went away with the work directory.
			if refused := err != nil && strings.Contains(err.Error(), "read-only"); refused == none && (os.Getuid() == 0 || !none) {
				t.Errorf("%s: %v", name, err)
			}
			// It changes no later run.
			if _, err := target.Plan(t.Context(), r); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestTreeIsBound applies a plan over other files than those that were judged.
func TestTreeIsBound(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, e engine) {
		t.Parallel()
		l := newLab(t, e)
		target := l.target(t)
		r, p := planned(t, target, snapshot("c1", map[string]string{
			"infra/main.tf": `resource "terraform_data" "x" { input = filesha256("run.sh") }`, "infra/run.sh": "echo good"}))
		// Everything that a judge saw is the first commit's; the files that the
		// plan would be applied over are another one's.
		other, q := planned(t, target, snapshot("c1", map[string]string{
			"infra/main.tf": `resource "terraform_data" "x" { input = filesha256("run.sh") }`, "infra/run.sh": "echo bad"}))
		if r.Digest == other.Digest || p.Payload == q.Payload {
			t.Error("a script that the configuration reads is not bound")
		}
		q.Rendered = p.Rendered
		if _, err := target.Apply(t.Context(), targetstest.Grant(t.Context(), t, q)); err == nil {
			t.Error("applied over files that were not judged")
		}
		again, err := target.Plan(t.Context(), r, p.Changes[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		again.Private = p.Private // another plan file of the same rendering
		if _, err := target.Apply(t.Context(), targetstest.Grant(t.Context(), t, again)); err == nil {
			t.Error("applied a plan file that was not judged")
		}
		mixed := other
		mixed.Digest = r.Digest
		if _, err := target.Plan(t.Context(), mixed); err == nil {
			t.Error("planned a rendering whose digest is another's")
		}
	})
}

// BenchmarkPlan measures a drift check of two small resources with nothing to do.
func BenchmarkPlan(b *testing.B) {
	mirror, err := testenv.ProviderMirror(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	for name, binary := range testenv.Terraforms(b) {
		b.Run(name, func(b *testing.B) {
			e := engine{name: name, binary: binary, host: hosts[name], mirror: mirror}
			l := newLab(b, e)
			target := l.target(b)
			r, _ := l.deploy(b, target, snapshot("c", map[string]string{
				"infra/main.tf":             "resource \"time_static\" \"a\" {}\nresource \"terraform_data\" \"b\" {}\n",
				"infra/.terraform.lock.hcl": string(e.lock(b, map[string]string{"time": "0.14.2"})),
			}))
			for b.Loop() {
				if _, err := target.Plan(context.Background(), r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
