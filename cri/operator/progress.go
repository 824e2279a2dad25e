package operator

import (
	"sync"
	"time"

	"google.golang.org/grpc"
)

// event is one message to the client: what has changed, and at the end the result.
type event struct {
	Progress []Progress `json:"progress,omitempty"`
	Result   *Result    `json:"result,omitempty"`
}

// pace is how often a client hears of progress at most: as often as an eye sees it.
const pace = 50 * time.Millisecond

// relay runs the work and tells the client how it goes. The work never waits for the client: reports go to a board, and
// the client gets what is new there whenever it has taken the last message.
func relay(stream grpc.ServerStream, run func(note func(Progress)) (Result, error)) error {
	b := &board{news: make(chan struct{}, 1)}
	done := make(chan outcome, 1)
	go func() {
		result, err := run(b.note)
		done <- outcome{result, err}
	}()
	news, rest := b.news, (<-chan time.Time)(nil)
	for {
		select {
		case o := <-done:
			return o.tell(stream, b)
		case <-rest:
			news, rest = b.news, nil
		case <-news:
			if err := stream.SendMsg(&event{Progress: b.take()}); err != nil {
				<-done // the client is gone, which ends the context of the work
				return err
			}
			news, rest = nil, time.After(pace)
		}
	}
}

type outcome struct {
	result Result
	err    error
}

func (o outcome) tell(stream grpc.ServerStream, b *board) error {
	if o.err != nil {
		return o.err
	}
	return stream.SendMsg(&event{Progress: b.take(), Result: &o.result})
}

// board holds the newest report of each layer that the client has not seen.
type board struct {
	news chan struct{} // holds one token while there is something to take

	mu     sync.Mutex // guards order and latest
	order  []string   // layers, as they were first reported since the last take
	latest map[string]Progress
}

// note is called from many goroutines, and never blocks.
func (b *board) note(p Progress) {
	b.mu.Lock()
	if b.latest == nil {
		b.latest = map[string]Progress{}
	}
	if _, ok := b.latest[p.Layer]; !ok {
		b.order = append(b.order, p.Layer)
	}
	b.latest[p.Layer] = p
	b.mu.Unlock()
	select {
	case b.news <- struct{}{}:
	default:
	}
}

func (b *board) take() []Progress {
	b.mu.Lock()
	defer b.mu.Unlock()
	var news []Progress
	for _, layer := range b.order {
		news = append(news, b.latest[layer])
	}
	b.order, b.latest = nil, nil
	return news
}
