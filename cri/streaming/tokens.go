package streaming

import (
	"crypto/rand"
	"errors"
	"net/http"
	"sync"
	"time"
)

// ErrTooMany means that clients ask for URLs and do not use them.
var ErrTooMany = errors.New("too many streaming requests wait for their client")

// The limits are those of k8s.io/cri-streaming (request_cache.go), which the kubelet is used to.
const (
	tokenLife = time.Minute
	maxTokens = 1000
)

// tokens are the requests that were granted and not yet opened, by the path of their URL. The zero value is ready.
type tokens struct {
	mu      sync.Mutex // guards waiting; never held while anything is called
	waiting map[string]waiting
}

type waiting struct {
	handler http.HandlerFunc
	expiry  *time.Timer
}

// issue makes a path below prefix that nobody can guess and that is good for one take.
func (t *tokens) issue(prefix string, h http.HandlerFunc) (path string, err error) {
	path = prefix + rand.Text()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) >= maxTokens {
		return "", ErrTooMany
	}
	if t.waiting == nil {
		t.waiting = map[string]waiting{}
	}
	t.waiting[path] = waiting{h, time.AfterFunc(tokenLife, func() { t.take(path) })}
	return path, nil
}

// take returns the handler of a path, to the first who asks in time.
func (t *tokens) take(path string) (http.HandlerFunc, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w, ok := t.waiting[path]
	if !ok {
		return nil, false
	}
	delete(t.waiting, path)
	w.expiry.Stop()
	return w.handler, true
}
