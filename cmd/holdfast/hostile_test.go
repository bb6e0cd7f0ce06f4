package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/reconciler"
)

// hostileMemory is how much anonymous memory the daemon and its workers may
// reach with hostile input, in bytes.
const hostileMemory = 512 << 20

// TestHostileInput: what a signer of one folder can put there gives a clear
// error for that stack alone, in bounded time and memory; the neighbour is
// deployed all the same, at the very commit.
func TestHostileInput(t *testing.T) {
	t.Parallel()
	f := newFaulty(t)
	f.start()
	f.converged()
	peak := watchMemory(t, f.d.PID())

	const dir = "apps/hostile/"
	stack := func(spec string) string {
		return "apiVersion: holdfast.dev/v1alpha1\nkind: Stack\nmetadata: {name: hostile}\nspec:\n  environment: production\n  kubernetes: {namespace: " + f.w.Namespace + spec + "}\n"
	}
	plain, kustomized := stack(`, manifests: ["*.yaml"]`), stack(", kustomize: .")
	cm := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: hostile}\n"
	component := "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\n"
	for i, c := range []struct {
		name, stack string
		files       map[string]string
		message     string
	}{
		{name: "manifest of 10 MB", stack: plain, files: map[string]string{"a.yaml": cm + "data:\n  k: \"" + strings.Repeat("x", 10<<20) + "\"\n"}, message: `bytes|large|limit`},
		{name: "deep YAML", stack: plain, files: map[string]string{"a.yaml": cm + "data: " + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000)}, message: `depth|deep`},
		{name: "deep maps", stack: plain, files: map[string]string{"a.yaml": cm + "data: " + strings.Repeat("{a: ", 9000) + "b" + strings.Repeat("}", 9000)}, message: `depth|deep`},
		{name: "alias bomb", stack: plain, files: map[string]string{"a.yaml": cm + "data:\n" + aliases()}, message: `alias`},
		{name: "duplicate keys", stack: plain, files: map[string]string{"a.yaml": cm + "data:\n  a: b\n  a: c\n"}, message: `the key "a" is there already`},
		{name: "NUL", stack: plain, files: map[string]string{"a.yaml": cm + "data: {a: \"b\x00c\"}\n"}, message: `control characters`},
		{name: "not UTF-8", stack: plain, files: map[string]string{"a.yaml": cm + "data: {a: \"\xff\xfe\xfd\"}\n"}, message: `UTF-8`},
		{name: "odd Unicode in a name", stack: plain, files: map[string]string{"a.yaml": strings.Replace(cm, "hostile", "\"host\u202eile\u200b\"", 1)}, message: `not valid|name`},
		{name: "homoglyph in a name", stack: plain, files: map[string]string{"a.yaml": strings.Replace(cm, "hostile", "hоstile", 1)}, message: `not valid|name`},
		{name: "odd Unicode in the stack's name", stack: strings.Replace(plain, "name: hostile", "name: \"host\u202eile\"", 1), files: map[string]string{"a.yaml": cm}, message: `name`},
		{name: "path traversal", stack: kustomized, files: map[string]string{"kustomization.yaml": "resources: [../../../../etc/passwd]\n"}, message: `leaves the repository`},
		{name: "components that include each other", stack: kustomized, files: map[string]string{
			"kustomization.yaml": "components: [a]\n", "a/kustomization.yaml": component + "components: [../b]\n", "b/kustomization.yaml": component + "components: [../a]\n",
		}, message: `base of itself`},
		{name: "a kustomization that doubles", stack: kustomized, files: slowKustomization(), message: `more than 1000 folders`},
		{name: "a kustomization that takes minutes", stack: kustomized, files: manyPatches(), message: `takes longer than`},
	} {
		ok := t.Run(c.name, func(t *testing.T) {
			f.t = t
			version := fmt.Sprintf("8.%d", i)
			files := map[string]string{dir + "stack.yaml": c.stack}
			for name, content := range c.files {
				files[dir+name] = content
			}
			files[settingsFile] = strings.Replace(f.files[settingsFile], "log-level: info", "log-level: \""+version+"\"", 1)
			began := time.Now()
			f.commit(files)
			f.until("the neighbours to be ready", func(o reconciler.Overview) bool { return f.ready(o, "shop-settings") && f.ready(o, "shop-web") })
			neighbours := time.Since(began)
			if got := f.logLevel(); got != version {
				t.Errorf("the neighbour is of release %s, want %s", got, version)
			}
			f.saysIn("apps/hostile", c.message, reconciler.Invalid)
			t.Logf("the neighbours were ready after %s, it was refused after %s; up to %d MiB", neighbours.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), peak()>>20)
			must(t, f.w.Repo.Remove(strings.TrimSuffix(dir, "/")))
		})
		if !ok {
			break
		}
	}
	f.t = t
	if got := peak(); got > hostileMemory {
		t.Errorf("hostile input took the daemon to %d MiB", got>>20)
	}
	f.sound()
}

// TestKilledWhileRendering: a worker that renders something endless does not
// outlive the daemon, and what it was to render is rendered after the restart.
func TestKilledWhileRendering(t *testing.T) {
	t.Parallel()
	f := newFaulty(t)
	f.start()
	f.converged()
	files := map[string]string{settingsFile: strings.Replace(f.files[settingsFile], "log-level: info", "log-level: \"5.9\"", 1)}
	files["apps/hostile/stack.yaml"] = "apiVersion: holdfast.dev/v1alpha1\nkind: Stack\nmetadata: {name: hostile}\nspec:\n  environment: production\n  kubernetes: {namespace: " + f.w.Namespace + ", kustomize: .}\n"
	for name, content := range manyPatches() {
		files["apps/hostile/"+name] = content
	}
	f.commit(files)
	f.says("hostile", "", reconciler.Reconciling)
	f.eventually("a worker", func() bool { return len(children(f.d.PID())) > 0 })
	workers := children(f.d.PID())
	f.kill()
	f.eventually("the end of the workers", func() bool {
		return !slices.ContainsFunc(workers, func(pid int) bool { return memory(pid) > 0 })
	})
	f.start()
	f.converged()
	must(t, f.w.Repo.Remove("apps/hostile"))
	f.settings("5.10")
	f.converged()
	f.sound()
}

// TestHostileRepository: a repository that is larger than its limits, or has
// links that lead in circles, is refused as a whole, in bounded memory, while
// what was verified before goes on being enforced.
func TestHostileRepository(t *testing.T) {
	t.Parallel()
	f := newFaulty(t)
	f.start()
	f.converged()
	level := f.logLevel()
	peak := watchMemory(t, f.d.PID())
	f.git("config", "core.compression", "1") // the repositories are large, and their content is not the point
	for _, c := range []struct {
		name, message string
		build         func(dir string)
	}{
		{"100,001 files", `files|limit`, func(dir string) {
			for i := range 100_001 {
				if i%1000 == 0 {
					must(t, os.MkdirAll(filepath.Join(dir, strconv.Itoa(i/1000)), 0o755))
				}
				must(t, os.WriteFile(filepath.Join(dir, strconv.Itoa(i/1000), strconv.Itoa(i)), nil, 0o600))
			}
		}},
		{"2 GB", `bytes|limit`, func(dir string) {
			must(t, os.MkdirAll(dir, 0o755))
			for i := range 128 { // all different, or Git would keep one
				file, err := os.Create(filepath.Join(dir, strconv.Itoa(i)))
				must(t, err)
				_, err = fmt.Fprint(file, i)
				must(t, err)
				must(t, file.Truncate(16<<20-1))
				must(t, file.Close())
			}
		}},
	} {
		ok := t.Run(c.name, func(t *testing.T) {
			f.t = t
			before := f.head
			c.build(filepath.Join(f.w.Repo.Dir, "apps/hostile"))
			f.settings("9.0")
			f.repositorySays(c.message)
			f.tamper("debug")
			f.eventually("the repair", func() bool { return f.logLevel() == level })
			t.Logf("up to %d MiB", peak()>>20)
			// The commit never was: the next one follows what was there before.
			f.git("reset", "-q", "--hard", before)
			f.git("clean", "-fdxq")
			f.head = before
			f.git("push", "-q", "--force", "origin", "HEAD")
			f.until("the way back", func(o reconciler.Overview) bool {
				return o.Repositories[0].Head == before && o.Repositories[0].Message == ""
			})
		})
		if !ok {
			break
		}
	}
	f.t = t
	if got := peak(); got > hostileMemory {
		t.Errorf("the repository took the daemon to %d MiB", got>>20)
	}
	f.settings("9.1")
	f.converged()
	f.sound()
}

// saysIn is says for a stack that may have no name of its own.
func (f *faulty) saysIn(dir, message string, phases ...reconciler.Phase) {
	f.t.Helper()
	name := ""
	f.until("a stack in "+dir, func(o reconciler.Overview) bool {
		for _, st := range o.Stacks {
			if st.Dir == dir && st.Desired == f.head {
				name = st.Stack
			}
		}
		return name != ""
	})
	f.says(name, message, phases...)
}

// watchMemory samples the anonymous memory of a process and its children until
// the test ends, and returns the most that it saw.
func watchMemory(t *testing.T, pid int) (peak func() int64) {
	t.Helper()
	stop, samples := make(chan struct{}), make(chan int64)
	t.Cleanup(func() { close(stop) })
	go func() {
		var most int64
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			most = max(most, memory(pid))
			select {
			case <-tick.C:
			case samples <- most:
			case <-stop:
				return
			}
		}
	}()
	return func() int64 { return <-samples }
}

// memory returns the anonymous resident bytes of a process and its children. A
// process that is gone has none.
func memory(pid int) (total int64) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "RssAnon:"); ok {
			kib, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64) // the kernel writes numbers
			total += kib << 10
		}
	}
	for _, child := range children(pid) {
		total += memory(child)
	}
	return total
}

// children returns the processes that a process started.
func children(pid int) (pids []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is good
	for _, t := range tasks {
		list, err := os.ReadFile(t)
		if err != nil {
			continue // the thread is gone
		}
		for child := range strings.FieldsSeq(string(list)) {
			if n, err := strconv.Atoi(child); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// numbered returns n lines by a format.
func numbered(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// aliases returns a few lines that unfold to 10^9 values.
func aliases() string {
	var b strings.Builder
	b.WriteString("  a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n")
	for i := 1; i < 10; i++ {
		fmt.Fprintf(&b, "  a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	return b.String()
}

// slowKustomization doubles its work with each of many levels.
func slowKustomization() map[string]string {
	files := map[string]string{"kustomization.yaml": "resources: [l0, m0]\n"}
	const levels = 25
	for i := range levels {
		for _, side := range []string{"l", "m"} {
			files[fmt.Sprintf("%s%d/kustomization.yaml", side, i)] = fmt.Sprintf("namePrefix: %s-\nresources: [../l%d, ../m%d]\n", side, i+1, i+1)
		}
	}
	for _, side := range []string{"l", "m"} {
		files[fmt.Sprintf("%s%d/kustomization.yaml", side, levels)] = "resources: [cm.yaml]\n"
		files[fmt.Sprintf("%s%d/cm.yaml", side, levels)] = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: " + side + "}\n"
	}
	return files
}

// manyPatches has every patch look at every object.
func manyPatches() map[string]string {
	var objects strings.Builder
	for i := range 1500 {
		fmt.Fprintf(&objects, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c%d}\ndata: {a: b}\n---\n", i)
	}
	patch := "- target: {kind: ConfigMap, name: \"c.*|(c+)+\"}\n  patch: |\n    [{\"op\": \"add\", \"path\": \"/data/k%d\", \"value\": \"x\"}]\n"
	return map[string]string{"all.yaml": objects.String(), "kustomization.yaml": "resources: [all.yaml]\npatches:\n" + numbered(300, patch)}
}
