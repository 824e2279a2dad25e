package deptest

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/evenkeel/evenkeel"
	root   = "../.."
)

// A room is one package of the module, by its path below the module: "cri/streaming".
type room struct {
	Path    string
	Imports []string // of its code, not of its tests
}

// rooms asks the go command, which knows build tags and generated files better than a walk would.
func rooms(t *testing.T) []room {
	t.Helper()
	var list []room
	for _, p := range goList(t, "./...") {
		list = append(list, room{strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/"), p.Imports})
	}
	return list
}

type listed struct {
	ImportPath string
	Imports    []string
	Standard   bool
}

func goList(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-e", "-json=ImportPath,Imports,Standard"}, args...)...)
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		errors.As(err, &exit)
		t.Fatalf("go list %v: %v\n%s", args, err, exit.Stderr)
	}
	var list []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := d.Decode(&p); err == io.EOF {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

// A source is one parsed file that ends up in a binary: no test, and nothing below integration or examples.
type source struct {
	Path    string // below the module: "sandbox/pods.go"
	File    *ast.File
	Set     *token.FileSet
	imports map[string]string // local name to import path
}

func sources(t *testing.T) []*source {
	t.Helper()
	var list []*source
	set := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		switch {
		case d.IsDir() && (name == "integration" || name == "examples" || name == "bin" || name != "." && strings.HasPrefix(d.Name(), ".")):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		list = append(list, &source{name, file, set, importNames(file)})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func importNames(file *ast.File) map[string]string {
	names := map[string]string{}
	for _, spec := range file.Imports {
		path, _ := strconv.Unquote(spec.Path.Value)
		name := path[strings.LastIndexByte(path, '/')+1:]
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = path
	}
	return names
}

// line says where a node stands, as an editor understands it.
func (s *source) line(n ast.Node) string {
	return s.Path + ":" + strconv.Itoa(s.Set.Position(n.Pos()).Line)
}

// in reports whether the file lies in one of the rooms, or below one.
func (s *source) in(rooms ...string) bool {
	for _, r := range rooms {
		if strings.HasPrefix(s.Path, r+"/") {
			return true
		}
	}
	return false
}
