package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/internal/atomicfile"
)

// Exit is how a process ended. Known false means nobody could tell; Code is then 255.
type Exit struct {
	Known     bool
	Code      int  // 128+signal for a process that a signal ended
	Signal    int  // the signal, or 0
	OOMKilled bool // the OOM killer killed the first process
	OOM       *OOM `json:",omitempty"` // what it killed in the container, also if that was not the first process
	At        time.Time
}

const exitName = "exit"

// ReadExit reads the exit file of a container (dir is Exits/<container id>). A missing file is os.ErrNotExist.
func ReadExit(dir string) (Exit, error) {
	path := filepath.Join(dir, exitName)
	data, err := os.ReadFile(path)
	if err != nil {
		return Exit{}, fmt.Errorf("cannot read exit of container %s: %w", filepath.Base(dir), err)
	}
	var e Exit
	if err := json.Unmarshal(data, &e); err != nil {
		return Exit{}, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return e, nil
}

// writeExit needs no checksum in the file: it is renamed into place whole, and a machine that lost power has another
// boot id, after which no exit file is asked for.
//
// The directory is the daemon's. It is gone when the container was removed while this shim was silent: then nobody will ask,
// and a new one would never be removed.
func writeExit(dir string, e Exit) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	err = atomicfile.Write(filepath.Join(dir, exitName), append(data, '\n'), 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func exitOf(e ending) Exit {
	x := Exit{Known: true, Code: e.status.ExitStatus(), At: e.at}
	if e.status.Signaled() {
		x.Signal = int(e.status.Signal())
		x.Code = 128 + x.Signal
	}
	return x
}

// exitStatus is the error of a command that failed, as far as package runc looks at it.
type exitStatus unix.WaitStatus

func (s exitStatus) ExitCode() int { return unix.WaitStatus(s).ExitStatus() }

func (s exitStatus) Error() string {
	if w := unix.WaitStatus(s); w.Signaled() {
		return "ended by " + w.Signal().String()
	}
	return fmt.Sprintf("exit status %d", s.ExitCode())
}
