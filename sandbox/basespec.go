package sandbox

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// BaseRlimits reads the resource limits of a base spec, a runtime-spec document as containerd's base_runtime_spec is one.
func BaseRlimits(file string) ([]specs.POSIXRlimit, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read the base spec: %w", err)
	}
	var base specs.Spec
	if err := json.Unmarshal(data, &base); err != nil {
		return nil, fmt.Errorf("base spec %s: %w", file, err)
	}
	if base.Process == nil {
		return nil, nil
	}
	for _, l := range base.Process.Rlimits {
		if !strings.HasPrefix(l.Type, "RLIMIT_") || l.Soft > l.Hard {
			return nil, fmt.Errorf("base spec %s: process.rlimits: %s with soft %d and hard %d is no limit", file, l.Type, l.Soft, l.Hard)
		}
	}
	return base.Process.Rlimits, nil
}
