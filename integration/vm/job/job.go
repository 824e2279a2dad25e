// Package job is what the host and the guest of a test machine tell each other. The job travels as a file in the
// initramfs; what happens comes back as lines of JSON through a virtio serial port, and output through others.
package job

import (
	"strings"
	"time"
)

// Path of the job in the guest.
const Path = "/job.json"

// A Job is what a machine does between boot and power off.
type Job struct {
	Init  string // who is the first process after the machine is set up; empty: the guest program itself
	Steps []Step
	// Policy is a file in the guest: an SELinux policy to enforce before anything else; empty: none. Not under systemd.
	Policy string
	Shell  bool      // an interactive shell on the console, after the steps
	Now    time.Time // a virtual machine may boot without a clock
}

// A Step is one program. Its standard output goes to the port Output.
type Step struct {
	Name string // of the package it tests, for the report
	Argv []string
	Dir  string
	Env  []string // all of it
}

// Boundary begins the line that stands before the output of each step; the rest of the line is the step's name.
const Boundary = "\n\x1estep "

// Environment of a process that the first process starts, with more directories to look for programs in.
func Environment(more ...string) []string {
	path := append(more, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
	return []string{"PATH=" + strings.Join(path, ":"), "HOME=/root", "TMPDIR=/tmp", "TERM=linux"}
}

// Systemd is what Job.Init says for a machine under systemd.
const Systemd = "systemd"

// Ports of the guest, as /sys/class/virtio-ports names them.
const (
	Events = "evenkeel.events" // lines of JSON, each an Event
	Output = "evenkeel.output" // standard output of the steps
)

// An Event tells the host how far the guest is.
type Event struct {
	What   string // one of the constants
	Step   string `json:",omitempty"`
	Code   int    `json:",omitempty"` // exit code of a step; 128 and more: killed by a signal
	Detail string `json:",omitempty"`
	// Seconds since the kernel started.
	Uptime float64
}

const (
	Up      = "up"      // the machine is ready for the first step
	Started = "started" // a step
	Ended   = "ended"   // a step
	Failed  = "failed"  // the machine itself
	Down    = "down"    // all is written; the power goes off next
)
