package main

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/faults.md anew")

// TestFaultsPage asserts that docs/faults.md has every line that the doctor can
// say, with its cure, as they stand in the code. After a change:
// go test ./cmd/porchlight -run FaultsPage -update
func TestFaultsPage(t *testing.T) {
	const file = "../../docs/faults.md"
	want := faultsPage(t)
	if *update {
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what the doctor says; run: go test ./cmd/porchlight -run FaultsPage -update", file)
	}
}

func faultsPage(t *testing.T) []byte {
	t.Helper()
	var page bytes.Buffer
	page.WriteString(`# What the doctor says, and the cure

This page is made of the program (` + "`go test ./cmd/porchlight -run FaultsPage -update`" + `). An … stands for what is named there. *Broken* keeps the gateway from its work, or a device from the gateway; *look* does not.
What is wrong with the config is said with file, line, what is allowed and how to mend it; ` + "`porchlight check`" + ` says all of it at once.

| verdict | of | what is seen | what to do |
|---|---|---|---|
`)
	rows := 0
	for _, file := range []string{"doctor.go", "check_online.go"} {
		vars := map[string][]string{} // of the function at hand, and what is assigned to them
		inspect(t, file, func(n ast.Node) {
			switch n := n.(type) {
			case *ast.FuncDecl:
				vars = assigned(n)
			case *ast.FuncLit:
				for name, texts := range assigned(n) {
					vars[name] = texts
				}
			}
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 3 {
				return
			}
			name, ok := call.Fun.(*ast.Ident)
			if !ok || name.Name != "broken" && name.Name != "look" {
				return
			}
			var cells []string
			for _, arg := range call.Args {
				cells = append(cells, cell(textOf(arg, vars)))
			}
			if strings.Join(cells, "") == "………" {
				return // what the server says, below
			}
			rows++
			fmt.Fprintf(&page, "| %s | %s |\n", name.Name, strings.Join(cells, " | "))
		})
	}
	if rows < 20 {
		t.Errorf("only %d lines of the doctor were found", rows)
	}
	page.WriteString("\nOf the XMPP server, in the order of the tries (login, PubSub service, node creation, node settings, members, stanza size, coming back), it says what the server answered, and one of these:\n\n")
	said := map[string]bool{}
	say := func(e ast.Expr) {
		if text := cell(textOf(e, nil)); text != "" && text != "…" && !said[text] {
			said[text] = true
			fmt.Fprintf(&page, "- %s\n", text)
		}
	}
	inspect(t, "../../bridge/try.go", func(n ast.Node) {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if strings.HasPrefix(n.Name.Name, "advise") {
				ast.Inspect(n, func(n ast.Node) bool {
					if r, ok := n.(*ast.ReturnStmt); ok {
						say(r.Results[0])
					}
					return true
				})
			}
		case *ast.AssignStmt:
			for i, left := range n.Lhs {
				if s, ok := left.(*ast.SelectorExpr); ok && s.Sel.Name == "Next" && len(n.Rhs) == len(n.Lhs) {
					say(n.Rhs[i])
				}
			}
		}
	})
	if len(said) < 5 {
		t.Errorf("only %d cures of the server were found", len(said))
	}
	return page.Bytes()
}

func inspect(t *testing.T, file string, visit func(ast.Node)) {
	t.Helper()
	tree, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(tree, func(n ast.Node) bool {
		if n != nil {
			visit(n)
		}
		return true
	})
}

var verb = regexp.MustCompile(`%[-+#]?[0-9.]*[a-z]`)

// assigned gives the texts that a function assigns to its variables.
func assigned(f ast.Node) map[string][]string {
	vars := map[string][]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		if a, ok := n.(*ast.AssignStmt); ok && a.Tok != token.ADD_ASSIGN && len(a.Lhs) == len(a.Rhs) {
			for i, left := range a.Lhs {
				if name, ok := left.(*ast.Ident); ok {
					if text := textOf(a.Rhs[i], nil); text != "…" && text != "" {
						vars[name.Name] = append(vars[name.Name], text)
					}
				}
			}
		}
		return true
	})
	return vars
}

// textOf gives the text of an expression, as far as it stands in the code.
func textOf(e ast.Expr, vars map[string][]string) string {
	switch e := e.(type) {
	case *ast.Ident:
		if texts := vars[e.Name]; len(texts) > 0 {
			return strings.Join(texts, ", or: ")
		}
	case *ast.BasicLit:
		if text, err := strconv.Unquote(e.Value); err == nil {
			return text
		}
	case *ast.BinaryExpr:
		return textOf(e.X, vars) + textOf(e.Y, vars)
	case *ast.CallExpr:
		if f, ok := e.Fun.(*ast.SelectorExpr); ok && (f.Sel.Name == "Sprintf" || f.Sel.Name == "Errorf") {
			return strings.ReplaceAll(verb.ReplaceAllString(textOf(e.Args[0], vars), "…"), "%%", "%")
		}
	}
	return "…"
}

func cell(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "……", "…"), "|", `\|`)
}
