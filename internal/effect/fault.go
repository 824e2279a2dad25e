package effect

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// The environment variables that make a process fail on purpose. They are read once, at start; without them an
// effect costs one comparison. The daemon logs a warning when one is set.
const (
	// FaultEnv holds "ACTION:NAME" with ACTION one of kill-before, kill-after (the process sends itself SIGKILL),
	// fail-before (the effect does not run) and fail-after (it runs, and its answer is lost).
	FaultEnv = "EVENKEEL_FAULT"
	// TraceEnv names a file to which the name of each effect is appended when it is about to run.
	TraceEnv = "EVENKEEL_FAULT_TRACE"
)

type moment string

const (
	before moment = "before"
	after  moment = "after"
)

var fault, traceFile = os.Getenv(FaultEnv), os.Getenv(TraceEnv)

// Fault describes what this process was told to do wrong, or is empty.
func Fault() string { return fault }

func strike(name string, when moment) error {
	if fault == "" && traceFile == "" {
		return nil
	}
	if traceFile != "" && when == before {
		appendLine(traceFile, name)
	}
	action, target, _ := strings.Cut(fault, ":")
	if target != name {
		return nil
	}
	switch action {
	case "kill-" + string(when):
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal ends every thread; none may act in between
	case "fail-" + string(when):
		return fmt.Errorf("%s failed on purpose (%s=%s)", name, FaultEnv, fault)
	}
	return nil
}

func appendLine(path, line string) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return // a test's trace must not change what it traces
	}
	defer f.Close()
	fmt.Fprintln(f, line)
}
