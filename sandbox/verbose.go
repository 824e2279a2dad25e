package sandbox

// process is one by which tools enter the pod's namespaces (nsenter -t PID -n): its own where it has one, else that of a
// container that runs in it. 0 says that nothing runs.
func (p *pod) process() int {
	if pid := p.facts().Init.PID; pid != 0 {
		return pid
	}
	members := p.index.allContainers(p.id)
	for i := len(members) - 1; i >= 0; i-- { // the oldest one is likely to stay longest
		if c := members[i]; c.runs() {
			return c.facts().Process.PID
		}
	}
	return 0
}
