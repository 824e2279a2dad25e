package engine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const unitDir = "/run/systemd/system"

// StartUnit starts the daemon as a unit of systemd's: the project's own units, with the paths of this engine. Stop and Kill
// stop and remove them.
func (e *Engine) StartUnit() error {
	if err := e.configure(); err != nil {
		return err
	}
	e.unit = e.Instance().NFTable
	for _, kind := range []string{".service", ".socket"} {
		data, err := os.ReadFile(filepath.Join(e.Bin, "../../dist/evenkeel"+kind))
		if err != nil {
			return err
		}
		text := strings.NewReplacer(
			"@PREFIX@/bin/evenkeel serve", filepath.Join(e.Bin, "evenkeel")+" "+strings.Join(e.args(), " "),
			"/run/evenkeel/evenkeel.sock", e.Socket(), "evenkeel.socket", e.unit+".socket",
			"[Service]\n", "[Service]\nStandardError=append:"+e.LogFile()+"\n",
		).Replace(string(data))
		if err := os.WriteFile(filepath.Join(unitDir, e.unit+kind), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := errors.Join(systemctl("daemon-reload"), e.Systemctl("start")); err != nil {
		return fmt.Errorf("%w\n%s", err, e.LastWords(20))
	}
	return e.connect()
}

// Unit is the name of the daemon's service.
func (e *Engine) Unit() string { return e.unit + ".service" }

// Systemctl does something with the daemon's service.
func (e *Engine) Systemctl(verb string) error { return systemctl(verb, e.Unit()) }

func (e *Engine) removeUnit() error {
	err := systemctl("stop", e.unit+".socket", e.Unit())
	for _, kind := range []string{".service", ".socket"} {
		err = errors.Join(err, os.Remove(filepath.Join(unitDir, e.unit+kind)))
	}
	e.unit = ""
	return errors.Join(err, systemctl("daemon-reload"))
}

func systemctl(args ...string) error {
	out, err := exec.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}
