package network

import (
	"fmt"
	"math"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Bandwidth limits what goes into a pod and what comes out of it, in bits per second; 0 is no limit.
type Bandwidth struct{ Ingress, Egress uint64 }

// ReadBandwidth reads the annotations kubernetes.io/ingress-bandwidth and kubernetes.io/egress-bandwidth, which are
// quantities between 1k and 1P (Kubernetes, k8s.io/kubernetes/pkg/util/bandwidth).
func ReadBandwidth(annotations map[string]string) (b Bandwidth, err error) {
	if b.Ingress, err = readRate(annotations, "kubernetes.io/ingress-bandwidth"); err != nil {
		return b, err
	}
	b.Egress, err = readRate(annotations, "kubernetes.io/egress-bandwidth")
	return b, err
}

func readRate(annotations map[string]string, name string) (uint64, error) {
	value, ok := annotations[name]
	if !ok {
		return 0, nil
	}
	q, err := resource.ParseQuantity(value)
	if err != nil {
		return 0, fmt.Errorf("cannot read annotation %s %q: %w", name, value, err)
	}
	if q.Value() < 1e3 || q.Value() > 1e15 {
		return 0, fmt.Errorf("annotation %s %q is not between 1k and 1P", name, value)
	}
	return uint64(q.Value()), nil
}

// burst is how many bits may pass at once at a rate: those of a tenth of a second, which is also how long a queue behind it
// can make a packet wait, but at least one packet of the largest size. The other runtimes name 2 Gbit, which lets 256 MiB
// pass before anything is limited.
func burst(rate uint64) uint64 { return min(max(rate/10, 8*math.MaxUint16), math.MaxUint32) }
