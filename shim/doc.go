// Package shim is the one process per pod that outlives the daemon: parent and reaper of the pod's processes, writer
// of its logs, keeper of its exits. It holds both ends of the conversation: Client for the daemon, Serve for the shim.
package shim
