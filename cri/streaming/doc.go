// Package streaming serves exec, attach and port-forward sessions over HTTP, to the kubelet and to crictl, which open
// the one-time URLs that the CRI's Exec, Attach and PortForward answered with.
//
// The wire protocols, SPDY and WebSocket, are k8s.io/cri-streaming's. What this room adds is the life of a session: a
// URL is good for one request within a minute, a session ends when its client's connection does, and Stop ends them
// all. The library's own server does none of the latter two, since it hijacks connections: a request's context outlives
// its client there, port-forwards have no context at all, and sessions survive the server.
package streaming
