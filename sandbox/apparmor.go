package sandbox

import (
	"context"
	_ "embed"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/evenkeel/evenkeel/internal/effect"
)

// defaultAppArmor is the profile of containers whose request leaves the choice to the engine (RuntimeDefault). It is part of the
// machine, like a kernel module, and not undone: containers outlive the daemon.
const defaultAppArmor = "evenkeel-default"

//go:embed apparmor.profile
var appArmorText string

var appArmorLoad = effect.New("apparmor.load")

// parserLimit is for a compiler of a page of text.
const parserLimit = 30 * time.Second

// LoadAppArmor makes sure that the kernel has the default profile, and returns its name; empty where AppArmor is off. A profile
// of that name that is loaded already is taken as it is: it may be the operator's own.
func LoadAppArmor(ctx context.Context) (string, error) {
	if !enabled("/sys/module/apparmor/parameters/enabled", "Y") {
		return "", nil
	}
	if loaded, err := appArmorLoaded(defaultAppArmor); err != nil || loaded {
		return profileUnless(err), err
	}
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		return "", fmt.Errorf("AppArmor is on, and its profile %s is not loaded: install apparmor_parser (package apparmor), or load a profile of that name: %w", defaultAppArmor, err)
	}
	err = appArmorLoad.Do(ctx, func() error {
		ctx, end := context.WithTimeout(ctx, parserLimit)
		defer end()
		c := exec.CommandContext(ctx, parser, "--replace", "--skip-cache")
		c.Stdin = strings.NewReader(appArmorText)
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("cannot load the AppArmor profile %s: %w: %s", defaultAppArmor, err, out)
		}
		return nil
	})
	return profileUnless(err), err
}

// profileUnless names the default profile, unless there was an error.
func profileUnless(err error) string {
	if err != nil {
		return ""
	}
	return defaultAppArmor
}

// appArmor is the default profile for a container that is made now. It is looked for each time, since somebody may have unloaded
// it, as aa-remove-unknown does with every profile that has no file in /etc.
func (p *Pods) appArmor(ctx context.Context) string {
	if !p.Host.AppArmor {
		return ""
	}
	name, err := LoadAppArmor(ctx)
	if err != nil {
		p.Log.Debug("there is no default AppArmor profile", "error", err)
		return ""
	}
	return name
}
