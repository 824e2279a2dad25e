package runc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
)

// Error is what the runtime said when it failed: the message from its log, not its stderr, which belongs to the container.
type Error struct {
	Op      string // create, start, ...
	ID      string
	Message string // the runtime's own words, without a "level=error" wrapping
	Code    int    // exit code of the runtime, -1 if it did not run or was killed

	cause error // why it did not run or was killed, if that is known
}

// Error leaves it to the caller to say what it wanted of which container.
func (e *Error) Error() string { return fmt.Sprintf("the runtime's %s: %s", e.Op, e.Message) }

func (e *Error) Unwrap() error { return e.cause }

// ErrNotExist is matched (errors.Is) by the error of a call about a container that the runtime does not know.
var ErrNotExist = errors.New("runtime knows no such container")

// Is makes errors.Is(err, ErrNotExist) read the runtime's words, also after an Error crossed a process boundary.
func (e *Error) Is(target error) bool {
	return target == ErrNotExist && e.Op != "create" && saysNotExist(e.Message)
}

// runc: "container does not exist"; crun: "container `<id>` does not exist: …", or in older versions
// "error opening file `<root>/<id>/status`: No such file or directory".
func saysNotExist(message string) bool {
	m := strings.ToLower(message)
	return strings.Contains(m, "container does not exist") ||
		strings.Contains(m, "container `") && strings.Contains(m, "` does not exist") ||
		strings.Contains(m, "/status`: no such file or directory")
}

// ErrExecutable reports whether err says that the container's entrypoint cannot be executed, with the exit code a shell
// would give: 127 not found, 126 not executable (also a directory, or a wrong binary format).
func ErrExecutable(err error) (code int, ok bool) {
	var e *Error
	if !errors.As(err, &e) || (e.Op != "create" && e.Op != "start" && e.Op != "exec") {
		return 0, false
	}
	m := strings.ToLower(e.Message)
	if i := entrypoint(m); i >= 0 {
		return reason(m[i:])
	}
	return 0, false
}

// entrypoint finds where a message starts to speak of the executable. runc quotes Go's errors (exec: "name": ..., or
// "exec /name: ..." where execve itself failed); crun says "executable file `name`", "open executable" and "exec container process `name`".
// What precedes it may name mounts or working directories, whose errors read alike.
func entrypoint(m string) int {
	at := -1
	for _, marker := range []string{`exec: "`, "exec /", "executable file `", "open executable", "exec container process"} {
		if i := strings.LastIndex(m, marker); i > at {
			at = i
		}
	}
	return at
}

func reason(m string) (code int, ok bool) {
	for _, r := range []struct {
		text string
		code int
	}{
		{"not found in $path", 127},
		{"no such file or directory", 127},
		{"permission denied", 126},
		{"is a directory", 126},
		{"exec format error", 126},
	} {
		if strings.Contains(m, r.text) {
			return r.code, true
		}
	}
	return 0, false
}

// failure turns the end of a command into an Error.
func (r *Runc) failure(ctx context.Context, c call, err error, log *os.File) error {
	e := &Error{Op: c.op, ID: c.id, Code: -1}
	var exited interface{ ExitCode() int }
	if errors.As(err, &exited) {
		e.Code = exited.ExitCode()
	}
	if e.Code < 0 {
		e.cause = err
		if ctx.Err() != nil {
			e.cause = context.Cause(ctx)
		}
	}
	if e.Message = lastMessage(tail(log)); e.Message == "" || e.Code < 0 {
		e.Message = strings.TrimSuffix(e.Message+"; "+r.ended(e, err), "; ")
		e.Message = strings.TrimPrefix(e.Message, "; ")
	}
	return e
}

func (r *Runc) ended(e *Error, err error) string {
	switch {
	case e.Code >= 0:
		return fmt.Sprintf("%s ended with code %d and said nothing", r.Path, e.Code)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Sprintf("the runtime's program %s is missing", r.Path)
	}
	return e.cause.Error()
}

// lastMessage finds the last error of a JSON log, or else the last line that is not JSON (a panic, a usage message).
func lastMessage(log []byte) string {
	var message, plain string
	for line := range bytes.Lines(log) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil {
			// crun logs errors without a level; runc also logs warnings.
			if entry.Level != "warning" && entry.Level != "info" && entry.Level != "debug" && entry.Msg != "" {
				message = entry.Msg
			}
		} else if text := strings.TrimSpace(string(line)); text != "" {
			plain = text
		}
	}
	if message != "" {
		return message
	}
	return plain
}
