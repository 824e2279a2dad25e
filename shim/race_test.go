//go:build race

package shim

// The shim under test is built like the tests: its races count, not ours.
func init() { buildFlags, cgo = []string{"-race"}, "CGO_ENABLED=1" }
