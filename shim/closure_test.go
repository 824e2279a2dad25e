package shim

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// banned says what must not be linked into the shim, of which one runs per pod, and why not.
var banned = map[string]string{
	"net":               "it brings resolvers and their tables into every pod; the shim speaks over unix sockets through x/sys/unix",
	"net/http":          "two megabytes of program and its init-time tables in every pod",
	"crypto/tls":        "nothing leaves the machine",
	"log/slog":          "the shim has one thing to log to: its stderr",
	"os/user":           "it reads name services",
	"text/template":     "it keeps all methods of all types in the program",
	"testing":           "test code in the product",
	"github.com":        "std and golang.org/x/sys only, whatever is small today grows tomorrow",
	"google.golang.org": "std and golang.org/x/sys only; grpc alone is 10 MB per pod",
	"k8s.io":            "std and golang.org/x/sys only; the shim knows nothing of CRI messages",
	"golang.org/x/net":  "std and golang.org/x/sys only",
	"golang.org/x/sync": "std and golang.org/x/sys only",
}

// allowed are the rooms of this module that the shim may link.
var allowed = []string{"shim", "cmd/evenkeel-shim", "oci/runc", "internal/atomicfile", "internal/hostpath"}

const module = "github.com/evenkeel/evenkeel/"

func TestClosureStaysSmall(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "../cmd/evenkeel-shim").Output()
	if err != nil {
		t.Fatalf("cannot list what the shim links: %v", err)
	}
	packages := strings.Fields(string(out))
	if len(packages) < 20 {
		t.Fatalf("go list names only %v", packages)
	}
	for _, p := range packages {
		if room, ours := strings.CutPrefix(p, module); ours {
			if !slices.Contains(allowed, room) {
				t.Errorf("the shim links %s: it may link %v only, so that it stays small", p, allowed)
			}
			continue
		}
		for ban, why := range banned {
			if p == ban || strings.HasPrefix(p, ban+"/") {
				t.Errorf("the shim links %s: %s", p, why)
			}
		}
	}
}
