package sandbox

import (
	"errors"
	"strings"
	"testing"

	"github.com/evenkeel/evenkeel/shim"
)

func TestLogPolicy(t *testing.T) {
	defaults := shim.LogPolicy{Rate: 5000}
	for _, test := range []struct {
		name        string
		annotations map[string]string
		want        shim.LogPolicy
		wrong       string // what the error names
	}{
		{"nothing said", map[string]string{"example.org/note": "x"}, defaults, ""},
		{"of the pod", map[string]string{"log.evenkeel.dev/policy": "drop", "log.evenkeel.dev/max": "100Mi"}, shim.LogPolicy{Drop: true, Rate: 5000, Max: 100 << 20}, ""},
		{"of the container", map[string]string{"log.evenkeel.dev/rate": "1M", "rate.log.evenkeel.dev/web": "2Ki"}, shim.LogPolicy{Rate: 2048}, ""},
		{"of another", map[string]string{"rate.log.evenkeel.dev/db": "2Ki"}, defaults, ""},
		{"a bound taken away", map[string]string{"log.evenkeel.dev/rate": "0"}, shim.LogPolicy{}, ""},
		{"back to waiting", map[string]string{"log.evenkeel.dev/policy": "drop", "policy.log.evenkeel.dev/web": "block"}, defaults, ""},
		{"no such policy", map[string]string{"log.evenkeel.dev/policy": "maybe"}, shim.LogPolicy{}, "log.evenkeel.dev/policy"},
		{"no quantity", map[string]string{"rate.log.evenkeel.dev/web": "fast"}, shim.LogPolicy{}, "rate.log.evenkeel.dev/web"},
		{"wrong unit", map[string]string{"log.evenkeel.dev/rate": "1iM"}, shim.LogPolicy{}, `rate "1iM"`},
		{"negative", map[string]string{"log.evenkeel.dev/max": "-1"}, shim.LogPolicy{}, "log.evenkeel.dev/max"},
		{"too little", map[string]string{"log.evenkeel.dev/max": "1k"}, shim.LogPolicy{}, "65536"},
		{"too much", map[string]string{"log.evenkeel.dev/max": "99999999Ti"}, shim.LogPolicy{}, "log.evenkeel.dev/max"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := logPolicy(defaults, test.annotations, "web")
			if test.wrong != "" {
				if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), test.wrong) {
					t.Errorf("the error does not name %s: %v", test.wrong, err)
				}
			} else if err != nil || got != test.want {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}
