package shim

import (
	"bytes"
	"os"
	"strconv"
	"sync"
)

// shimOOMScore is what containerd gives its shims: killed after everything but the kubelet and the engine (-999).
const shimOOMScore = -998

// oomScore protects the shim without protecting its children, who inherit the score on fork and, unless their spec says
// otherwise, would carry it into the container.
type oomScore struct {
	inherited int
	protected bool // the kernel let us have own

	mu  sync.Mutex // held over a fork: the score is the process's, and must be the inherited one for that long
	own int
}

// protect tries; without CAP_SYS_RESOURCE the kernel refuses, and the shim stays as it was started.
func (o *oomScore) protect(score int) {
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return
	}
	o.inherited, _ = strconv.Atoi(string(bytes.TrimSpace(data)))
	o.own = score
	o.protected = setOOMScore(score) == nil
}

func (o *oomScore) child(fork func()) {
	if !o.protected {
		fork()
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	setOOMScore(o.inherited)
	fork()
	setOOMScore(o.own)
}

func setOOMScore(score int) error {
	return os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(score)), 0)
}
