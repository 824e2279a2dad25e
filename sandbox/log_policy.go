package sandbox

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/evenkeel/evenkeel/shim"
)

// logDomain is where annotations about logs live (docs/LOGS.md). "log.evenkeel.dev/rate" is about all containers of the pod,
// "rate.log.evenkeel.dev/NAME" about one: the part behind the slash holds 63 characters, as many as a container's name may have.
const logDomain = "log.evenkeel.dev"

// The least that makes sense: a rate that moves a line now and then, and a file that holds a few of the longest records.
const (
	minLogRate = 1 << 10
	minLogMax  = 64 << 10
)

// ParseLogPolicy reads a policy ("block", "drop"), a rate and a maximum (quantities of bytes; 0: no bound). An empty string
// leaves what is in the base.
func ParseLogPolicy(base shim.LogPolicy, policy, rate, limit string) (shim.LogPolicy, error) {
	p := base
	switch policy {
	case "":
	case "block", "drop":
		p.Drop = policy == "drop"
	default:
		return p, fmt.Errorf("policy %q: choose block or drop", policy)
	}
	var err error
	if p.Rate, err = logQuantity(rate, p.Rate, minLogRate); err != nil {
		return p, fmt.Errorf("rate %q: %w", rate, err)
	}
	if p.Max, err = logQuantity(limit, p.Max, minLogMax); err != nil {
		return p, fmt.Errorf("max %q: %w", limit, err)
	}
	return p, nil
}

func logQuantity(text string, base, least int64) (int64, error) {
	if text == "" {
		return base, nil
	}
	n, err := parseBytes(text)
	if err == nil && n != 0 && n < least {
		err = fmt.Errorf("it must be 0 for none, or at least %d bytes", least)
	}
	return n, err
}

// parseBytes reads a quantity as Kubernetes writes it, of whole bytes.
func parseBytes(text string) (int64, error) {
	number := strings.TrimRight(text, "kKMGTi")
	factor, known := map[string]int64{
		"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
	}[text[len(number):]]
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || !known || n < 0 || n > 1<<62/factor {
		return 0, fmt.Errorf("it is not a number of bytes such as 1Mi or 500k")
	}
	return n * factor, nil
}

// logPolicy is what annotations of the pod say about one of its containers, over the defaults. An annotation is the
// container's alone, the pod's, or missing.
func logPolicy(defaults shim.LogPolicy, annotations map[string]string, name string) (shim.LogPolicy, error) {
	p := defaults
	for _, aspect := range []string{"policy", "rate", "max"} {
		own, all := aspect+"."+logDomain+"/"+name, logDomain+"/"+aspect
		value := cmp.Or(annotations[own], annotations[all])
		set := map[string]string{aspect: value}
		next, err := ParseLogPolicy(p, set["policy"], set["rate"], set["max"])
		if err != nil {
			key := all
			if annotations[own] != "" {
				key = own
			}
			return p, fmt.Errorf("annotation %s: %w: %w", key, err, ErrInvalid)
		}
		p = next
	}
	return p, nil
}

// logPolicy of the container; nil is the shim's own default.
func (c *container) logPolicy() (*shim.LogPolicy, error) {
	pod, err := c.pod()
	if err != nil {
		return nil, err
	}
	p, err := logPolicy(c.Logs, pod.facts().Config.Message.GetAnnotations(), c.facts().Config.Message.GetMetadata().GetName())
	if err != nil || p == (shim.LogPolicy{}) {
		return nil, err
	}
	return &p, nil
}
