package sandbox

import (
	"errors"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrSlowReader ends the subscription of a reader that fell too far behind. It has missed events and must list anew.
var ErrSlowReader = errors.New("events were not read fast enough")

// ErrEnded ends the subscriptions of an engine that is stopping.
var ErrEnded = errors.New("the engine is stopping")

// eventBacklog is how many events may wait for one reader. Draining a node of 110 pods makes some 700; an event
// shares its statuses with every other reader and takes a few KiB.
const eventBacklog = 1024

// feed tells every change of facts to all who listen. Events are not made by those who act: they are what differs
// between a record and the one that replaces it (swap), or that an object has left the index (forget).
//
// Its lock puts all changes into one order. It is held while a record is replaced and the statuses that go with the
// event are read, both in memory; lists and statuses do not need it.
type feed struct {
	mu          sync.Mutex
	subscribers map[*Subscription]bool
	last        int64 // time of the last event, ns since 1970
	dropped     uint64
	ended       bool
}

// A Subscription is one reader's share of the events: all of them, in order, from Subscribe on.
type Subscription struct {
	feed  *feed
	queue chan *cri.ContainerEventResponse
	ended chan struct{} // closed when nothing more will come
	err   error         // why; valid once ended is closed
}

// Subscribe begins to listen. The caller ends with Close.
func (p *Pods) Subscribe() *Subscription {
	f := &p.events
	s := &Subscription{feed: f, queue: make(chan *cri.ContainerEventResponse, eventBacklog), ended: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		s.end(ErrEnded)
		return s
	}
	if f.subscribers == nil {
		f.subscribers = map[*Subscription]bool{}
	}
	f.subscribers[s] = true
	return s
}

// Events yields them in order. A reader listens to Ended beside it.
func (s *Subscription) Events() <-chan *cri.ContainerEventResponse { return s.queue }

// Ended is closed when the subscription was ended by this side; Err then says why.
func (s *Subscription) Ended() <-chan struct{} { return s.ended }

// Err is ErrSlowReader or ErrEnded once Ended is closed.
func (s *Subscription) Err() error { return s.err }

// Close stops listening.
func (s *Subscription) Close() {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	delete(s.feed.subscribers, s)
}

func (s *Subscription) end(err error) {
	s.err = err
	close(s.ended)
}

// EndEvents ends all subscriptions, so that no stream keeps the engine from stopping.
func (p *Pods) EndEvents() {
	f := &p.events
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	for s := range f.subscribers {
		delete(f.subscribers, s)
		s.end(ErrEnded)
	}
}

// DroppedReaders counts the readers of events that were dropped since they did not keep up.
func (p *Pods) DroppedReaders() uint64 {
	p.events.mu.Lock()
	defer p.events.mu.Unlock()
	return p.events.dropped
}

// tell queues events about the object id, all with the same statuses. The lock is held. A reader whose queue is full is
// dropped: waiting for it would let one client stop the pods of all.
func (f *feed) tell(id string, kinds []cri.ContainerEventType, pod *cri.PodSandboxStatus, containers []*cri.ContainerStatus) {
	for _, kind := range kinds {
		// The kubelet's cache takes only what is newer than what it has (pkg/kubelet/container/cache.go), and
		// clocks may step back.
		f.last = max(time.Now().UnixNano(), f.last+1)
		event := &cri.ContainerEventResponse{
			ContainerId: id, ContainerEventType: kind, CreatedAt: f.last, PodSandboxStatus: pod, ContainersStatuses: containers,
		}
		for s := range f.subscribers {
			select {
			case s.queue <- event:
			default:
				delete(f.subscribers, s)
				f.dropped++
				s.end(ErrSlowReader)
			}
		}
	}
}

// swap makes next the pod's record and tells what changed, as one step: an event shows all that came before it, and
// nothing that came after.
func (p *pod) swap(next *podRecord) {
	f := &p.events
	f.mu.Lock()
	defer f.mu.Unlock()
	kinds := podEvents(p.record.Swap(next), next)
	if len(kinds) == 0 || len(f.subscribers) == 0 {
		return
	}
	if pod, containers, err := p.Status(p.id); err == nil {
		f.tell(p.id, kinds, pod, containers)
	}
}

// swap is the pod's counterpart. The event of a container shows its pod and the pod's other containers, too.
func (c *container) swap(next *containerRecord) {
	f := &c.events
	f.mu.Lock()
	defer f.mu.Unlock()
	kinds := containerEvents(c.record.Swap(next), next)
	if c.stateOf(next) == cri.ContainerState_CONTAINER_UNKNOWN {
		return // what it has become is told when its silence ends
	}
	c.tell(kinds)
}

// speak ends the silence of a pod. What runs in it is told anew: whoever has listed it meanwhile has it as UNKNOWN.
func (p *pod) speak() {
	f := &p.events
	f.mu.Lock()
	defer f.mu.Unlock()
	p.silent.Store(false)
	all := p.index.allContainers(p.id)
	for _, c := range all {
		c.silent.Store(false)
	}
	for _, c := range all {
		if c.state() == cri.ContainerState_CONTAINER_RUNNING {
			c.tell([]cri.ContainerEventType{cri.ContainerEventType_CONTAINER_STARTED_EVENT})
		}
	}
}

func (c *container) tell(kinds []cri.ContainerEventType) {
	f := &c.events
	if len(kinds) == 0 || len(f.subscribers) == 0 {
		return
	}
	if pod, containers, err := c.Status(c.podID); err == nil {
		f.tell(c.id, kinds, pod, containers)
	}
}

// forget takes the pod out of the index. Its event shows it as it was last: the kubelet finds by the status what to forget.
func (p *pod) forget() {
	f := &p.events
	f.mu.Lock()
	defer f.mu.Unlock()
	if pod, _, err := p.Status(p.id); err == nil && !p.facts().ReadyAt.IsZero() {
		f.tell(p.id, []cri.ContainerEventType{cri.ContainerEventType_CONTAINER_DELETED_EVENT}, pod, nil)
	}
	p.index.dropPod(p)
}

// forget takes the container out of the index; its event shows the pod without it.
func (c *container) forget() {
	f := &c.events
	f.mu.Lock()
	defer f.mu.Unlock()
	c.index.dropContainer(c)
	if !c.facts().CreatedAt.IsZero() {
		c.tell([]cri.ContainerEventType{cri.ContainerEventType_CONTAINER_DELETED_EVENT})
	}
}

// podEvents says what happened between two records. A pod is created and started when it is READY, and stopped when
// it is READY no longer; what never was READY is nobody's business.
func podEvents(before, after *podRecord) (kinds []cri.ContainerEventType) {
	if before.ReadyAt.IsZero() && !after.ReadyAt.IsZero() {
		kinds = append(kinds, cri.ContainerEventType_CONTAINER_CREATED_EVENT, cri.ContainerEventType_CONTAINER_STARTED_EVENT)
	}
	wasReady := before.ready() || before.ReadyAt.IsZero() && !after.ReadyAt.IsZero()
	if wasReady && !after.ready() {
		kinds = append(kinds, cri.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
	return kinds
}

// containerEvents says what happened between two records, in the order of a container's life.
func containerEvents(before, after *containerRecord) (kinds []cri.ContainerEventType) {
	for _, fact := range []struct {
		before, after time.Time
		kind          cri.ContainerEventType
	}{
		{before.CreatedAt, after.CreatedAt, cri.ContainerEventType_CONTAINER_CREATED_EVENT},
		{before.StartedAt, after.StartedAt, cri.ContainerEventType_CONTAINER_STARTED_EVENT},
		{before.FinishedAt, after.FinishedAt, cri.ContainerEventType_CONTAINER_STOPPED_EVENT},
	} {
		if fact.before.IsZero() && !fact.after.IsZero() {
			kinds = append(kinds, fact.kind)
		}
	}
	return kinds
}
