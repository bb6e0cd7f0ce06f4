package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/policy"
	"github.com/holdfast-dev/holdfast/reconciler"
	"github.com/holdfast-dev/holdfast/targets"
	"github.com/holdfast-dev/holdfast/targets/plan"
	"github.com/holdfast-dev/holdfast/verify"
)

// outputFlag adds -o to c.
func outputFlag(c *cobra.Command, output *string) { formatFlag(c, output, "text", "json") }

// reportFlag is outputFlag for what a code scanner may show.
func reportFlag(c *cobra.Command, output *string) { formatFlag(c, output, "text", "json", "sarif") }

func formatFlag(c *cobra.Command, output *string, formats ...string) {
	all := strings.Join(formats[:len(formats)-1], ", ") + " or " + formats[len(formats)-1]
	c.Flags().StringVarP(output, "output", "o", formats[0], all)
	inner := c.PreRunE
	c.PreRunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains(formats, *output) {
			return usageError{fmt.Errorf("-o %s: want %s", *output, all)}
		}
		if inner != nil {
			return inner(cmd, args)
		}
		return nil
	}
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// table prints rows in aligned columns.
func table(w io.Writer, rows ...[]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// printable returns s without what a terminal would take for a command: names
// and messages come from repositories.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// printing prints what is printable.
type printing struct{ io.Writer }

func (p printing) Write(b []byte) (int, error) {
	if _, err := io.WriteString(p.Writer, printable(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

func short(id string) string { return id[:min(len(id), 12)] }

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

var actionSign = map[plan.Action]string{plan.Create: "+", plan.Update: "~", plan.Replace: "±", plan.Delete: "-"}

func printPlan(w io.Writer, p plan.Plan) {
	for _, c := range p.Changes {
		fmt.Fprintf(w, "%s %s", actionSign[c.Action], c.ID)
		if c.Reason != "" {
			fmt.Fprintf(w, "  (%s)", c.Reason)
		}
		if c.Source != "" {
			fmt.Fprintf(w, "  %s", c.Source)
		}
		fmt.Fprintln(w)
		if c.Action == plan.Update || c.Action == plan.Replace {
			printFields(w, c.Fields)
		}
		for _, f := range c.Stays {
			fmt.Fprintf(w, "    %s: stays %s although it is not declared any more%s\n", f.Path, clip(f.From), managedBy(f))
		}
	}
	if p.Empty() {
		fmt.Fprintln(w, "No changes: the world is as declared.")
		return
	}
	fmt.Fprintf(w, "Plan: %s.\n", p.Summary())
}

func printFields(w io.Writer, fields []plan.Field) {
	for _, f := range fields {
		fmt.Fprintf(w, "    %s: %s → %s%s\n", f.Path, clip(orNothing(f.From)), clip(orNothing(f.To)), managedBy(f))
	}
}

// managedBy says whose a field is, if it is somebody else's.
func managedBy(f plan.Field) string {
	switch {
	case f.Manager == "":
		return ""
	case f.Since.IsZero():
		return "  (managed by " + f.Manager + ")"
	}
	return fmt.Sprintf("  (managed by %s since %s)", f.Manager, f.Since.Format(time.RFC3339))
}

func orNothing(s string) string {
	if s == "" {
		return "(absent)"
	}
	return s
}

// clip shortens a value to what fits beside its path.
func clip(s string) string {
	const most = 120
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	return string(r[:most]) + "…"
}

// printEvidence prints what was looked at as a tree: of each check the verdict,
// what was found, what was expected, who asked for it and what to do next.
func printEvidence(w io.Writer, e verify.Evidence) {
	w = printing{w} // much of it is the words of strangers
	verdict := "ok"
	if !e.Verified() {
		verdict = "DENIED"
	}
	fmt.Fprintf(w, "%-6s  %s", verdict, e.Subject.Pinned())
	if e.Rule != "" {
		fmt.Fprintf(w, "  (rule %s)", e.Rule)
	}
	fmt.Fprintln(w)
	for _, c := range e.Checks {
		printCheck(w, c)
	}
}

func printCheck(w io.Writer, c verify.Check) {
	sign := "✓"
	switch {
	case !c.OK && c.Waived != "":
		sign = "!"
	case !c.OK:
		sign = "✗"
	}
	fmt.Fprintf(w, "    %s %s", sign, c.Name)
	if c.OK && c.Found != "" {
		fmt.Fprintf(w, ": %s", c.Found)
	}
	if c.Asked != "" {
		fmt.Fprintf(w, "  [%s]", c.Asked)
	}
	fmt.Fprintln(w)
	row := func(what, text string) {
		for i, line := range strings.Split(text, "\n") {
			if i > 0 {
				what = ""
			}
			if text != "" {
				fmt.Fprintf(w, "        %-9s %s\n", what, line)
			}
		}
	}
	if !c.OK {
		row("found", c.Found)
		row("expected", c.Want)
		for _, t := range c.Tried {
			row("looked at", strings.Join(slices.DeleteFunc([]string{t.Where, t.What, t.Found, t.Why}, func(s string) bool { return s == "" }), ": "))
		}
		row("waived", c.Waived)
		row("next", c.Next)
	}
	row("rests on", c.Detail)
}

func printDecision(w io.Writer, d *policy.Decision) {
	if d == nil {
		return
	}
	for _, r := range d.Results {
		where := r.File
		if r.Line > 0 {
			where = fmt.Sprintf("%s:%d", r.File, r.Line)
		}
		fmt.Fprintf(w, "%-9s  %s: %s  %s\n", r.Level, r.Namespace, r.Message, where)
	}
}

func printFindings(w io.Writer, found []targets.Finding) {
	for _, f := range found {
		fmt.Fprintf(w, "%s  %s", f.Class, f.ID)
		if who := f.Who(); who != "" {
			fmt.Fprintf(w, "  by %s", who)
		}
		if !f.Since.IsZero() {
			fmt.Fprintf(w, "  since %s", f.Since.Format(time.RFC3339))
		}
		if f.Ref != "" {
			fmt.Fprintf(w, "  %s", f.Ref)
		}
		fmt.Fprintln(w)
		if f.Source != "" {
			fmt.Fprintf(w, "    declared in %s", f.Source)
			if f.Excerpt != "" {
				fmt.Fprintf(w, ": %s", f.Excerpt)
			}
			fmt.Fprintln(w)
		}
		for _, field := range f.Fields {
			fmt.Fprintf(w, "    %s: is %s, should be %s%s\n", field.Path, clip(orNothing(field.From)), clip(orNothing(field.To)), managedBy(field))
		}
	}
}

func printStatus(w io.Writer, o reconciler.Overview) error {
	rows := [][]string{{"REPOSITORY", "VERIFIED", "HEAD", "MESSAGE"}}
	for _, r := range o.Repositories {
		rows = append(rows, []string{r.Name, dash(short(r.Verified)), dash(short(r.Head)), firstLine(r.Message)})
	}
	if err := table(w, rows...); err != nil {
		return err
	}
	for _, r := range o.Repositories {
		if r.Hint != "" {
			fmt.Fprintf(w, "hint for %s: %s\n", r.Name, r.Hint)
		}
	}
	fmt.Fprintln(w)
	rows = [][]string{{"STACK", "ENVIRONMENT", "TARGET", "PHASE", "APPLIED", "SINCE", "MESSAGE"}}
	for _, s := range o.Stacks {
		rows = append(rows, []string{s.Stack, dash(s.Environment), dash(s.Target), string(s.Phase), dash(short(s.Applied)),
			time.Since(s.Since).Round(time.Second).String(), clip(firstLine(s.Message))})
	}
	return table(w, rows...)
}
