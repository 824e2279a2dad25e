package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

func enabled(file, word string) bool {
	data, err := os.ReadFile(file)
	return err == nil && strings.TrimSpace(string(data)) == word
}

// appArmorProfiles lists what the kernel has loaded: "name (mode)" per line. It is empty where AppArmor is off.
const appArmorProfiles = "/sys/kernel/security/apparmor/profiles"

// appArmorLoaded is asked for each container with a Localhost profile: profiles come and go while the engine runs.
func appArmorLoaded(profile string) (bool, error) {
	data, err := os.ReadFile(appArmorProfiles)
	if errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("%s is missing: securityfs is not mounted, or AppArmor is off", appArmorProfiles)
	}
	return profileIn(string(data), profile), err
}

func profileIn(list, profile string) bool {
	for line := range strings.Lines(list) {
		if name, _, ok := cutLast(strings.TrimSpace(line), " ("); ok && name == profile {
			return true
		}
	}
	return false
}

// cutLast: a profile's name may hold the separator itself.
func cutLast(s, separator string) (before, after string, found bool) {
	if i := strings.LastIndex(s, separator); i >= 0 {
		return s[:i], s[i+len(separator):], true
	}
	return s, "", false
}

// selinuxKnowsContainers reports whether SELinux is on and its policy has the types that containers get
// (container-selinux): a label that the policy does not know would keep every container from starting. The kernel checks a
// label that is written to this file.
func selinuxKnowsContainers() bool {
	f, err := os.OpenFile("/sys/fs/selinux/context", os.O_WRONLY, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	_, err = f.WriteString("system_u:system_r:container_t:s0")
	return err == nil
}
