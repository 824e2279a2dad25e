package oci

import (
	"errors"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// refusals are requests that must not become a container. Each message says which field is wrong and why.
var refusals = []struct {
	name      string
	container string // protojson
	pod       string
	scene     func(*scene)
	want      []string // parts of the message
	is        error
}{
	{name: "no command", container: `{"image":{"image":"sha256:1","user_specified_image":"example.org/empty:2"}}`, scene: func(s *scene) { s.Image.Entrypoint = nil },
		want: []string{"command", "example.org/empty:2", "neither an entrypoint nor a command"}},
	{name: "NUL in an argument", container: `{"command":["sh","a\u0000b"]}`, want: []string{"command: argument 1", "NUL"}},
	{name: "NUL in a variable", container: `{"envs":[{"key":"SECRET","value":"YQBi"}]}`, want: []string{"envs", "SECRET", "NUL byte"}},
	{name: "bytes in a variable", container: `{"envs":[{"key":"KEYTAB","value":"//79"}]}`, want: []string{"envs", "KEYTAB", "not UTF-8"}},
	{name: "variable without a name", container: `{"envs":[{"value":"YQ=="}]}`, want: []string{"envs", "without a name"}},
	{name: "equals sign in a name", container: `{"envs":[{"key":"A=B","value":"YQ=="}]}`, want: []string{"envs", `"A=B"`, "'='"}},
	{name: "NUL in the image's environment", scene: func(s *scene) { s.Image.Env = []string{"X=a\x00b"} }, want: []string{"environment of image", "X"}},

	{name: "group without user", container: `{"linux":{"security_context":{"run_as_group":{"value":1}}}}`, want: []string{"run_as_group", "without run_as_user"}},
	{name: "two users", container: `{"linux":{"security_context":{"run_as_user":{"value":1},"run_as_username":"web"}}}`, want: []string{"only one of run_as_user and run_as_username"}},
	{name: "unknown user name", container: `{"linux":{"security_context":{"run_as_username":"nobody-here"}}}`, want: []string{`"nobody-here"`, "/etc/passwd"}},
	{name: "unknown user of the image", scene: func(s *scene) { s.Image.User = "app" }, want: []string{`"app"`, "/etc/passwd"}},
	{name: "unknown group of the image", scene: func(s *scene) { s.Image.User = "0:staff" }, want: []string{`"staff"`, "/etc/group"}},
	{name: "negative user", container: `{"linux":{"security_context":{"run_as_user":{"value":-1}}}}`, want: []string{"user -1", "between 0 and 2147483647"}},
	{name: "user that wraps to root", scene: func(s *scene) { s.Image.User = "4294967296:4294967296" }, want: []string{"user 4294967296", "between 0 and 2147483647"}},
	{name: "group beyond 64 bits", scene: func(s *scene) { s.Image.User = "0:99999999999999999999" }, want: []string{"group 99999999999999999999", "between 0"}},
	{name: "supplemental group out of range", container: `{"linux":{"security_context":{"supplemental_groups":[4294967296]}}}`, want: []string{"supplemental_groups: 4294967296"}},
	{name: "unknown groups policy", container: `{"linux":{"security_context":{"supplemental_groups_policy":7}}}`, want: []string{"supplemental_groups_policy: 7"}},

	{name: "unknown capability to add", container: `{"linux":{"security_context":{"capabilities":{"add_capabilities":["NET_ADMINS"]}}}}`, want: []string{"add_capabilities", `"NET_ADMINS"`}},
	{name: "unknown capability to drop", container: `{"linux":{"security_context":{"capabilities":{"drop_capabilities":["CAP_"]}}}}`, want: []string{"drop_capabilities", `"CAP_"`}},
	{name: "unknown ambient capability", container: `{"linux":{"security_context":{"capabilities":{"add_ambient_capabilities":["x"]}}}}`, want: []string{"add_ambient_capabilities", `"x"`}},
	{name: "capability the engine lacks", container: `{"linux":{"security_context":{"capabilities":{"add_capabilities":["SYS_RESOURCE"]}}}}`,
		scene: func(s *scene) { s.Host.Capabilities = []string{"CAP_CHOWN"} }, want: []string{"CAP_SYS_RESOURCE cannot be added", "bounding set"}},
	{name: "ambient capability the engine lacks", container: `{"linux":{"security_context":{"capabilities":{"drop_capabilities":["ALL"],"add_ambient_capabilities":["SYS_RESOURCE"]}}}}`,
		scene: func(s *scene) { s.Host.Capabilities = []string{"CAP_CHOWN"} }, want: []string{"CAP_SYS_RESOURCE cannot be added"}},
	{name: "privileged in an unprivileged pod", container: `{"linux":{"security_context":{"privileged":true}}}`, want: []string{"security_context.privileged", "sandbox"}},

	{name: "seccomp without kernel support", container: `{"linux":{"security_context":{"seccomp":{"profile_type":"RuntimeDefault"}}}}`,
		scene: func(s *scene) { s.Host.Seccomp = false }, want: []string{"security_context.seccomp", "has no seccomp"}},
	{name: "local seccomp profile missing", container: `{"linux":{"security_context":{"seccomp":{"profile_type":"Localhost","localhost_ref":"/p/none.json"}}}}`,
		scene: localProfiles, want: []string{"cannot read profile /p/none.json", "file does not exist"}},
	{name: "local seccomp profile is not JSON", container: `{"linux":{"security_context":{"seccomp":{"profile_type":"Localhost","localhost_ref":"/p/bad.json"}}}}`,
		scene: localProfiles, want: []string{"/p/bad.json", "not valid JSON"}},
	{name: "local seccomp profile of another shape", container: `{"linux":{"security_context":{"seccomp":{"profile_type":"Localhost","localhost_ref":"/p/list.json"}}}}`,
		scene: localProfiles, want: []string{"/p/list.json", "cannot unmarshal"}},
	{name: "local seccomp profile that confines nothing", container: `{"linux":{"security_context":{"seccomp":{"profile_type":"Localhost","localhost_ref":"/p/empty.json"}}}}`,
		scene: localProfiles, want: []string{"/p/empty.json", "no defaultAction"}},
	{name: "local seccomp profile with a relative path", container: `{"linux":{"security_context":{"seccomp":{"profile_type":"Localhost","localhost_ref":"p.json"}}}}`,
		scene: localProfiles, want: []string{`"p.json"`, "absolute"}},
	{name: "no reader of local profiles", container: `{"linux":{"security_context":{"seccomp":{"profile_type":"Localhost","localhost_ref":"/p/bad.json"}}}}`,
		want: []string{"/p/bad.json", "cannot be read"}},
	{name: "unknown seccomp type", container: `{"linux":{"security_context":{"seccomp":{"profile_type":9}}}}`, want: []string{"security_context.seccomp", "9"}},
	{name: "unknown deprecated seccomp profile", container: `{"linux":{"security_context":{"seccomp_profile_path":"strict"}}}`, want: []string{"seccomp_profile_path", `"strict"`}},
	{name: "local AppArmor profile without AppArmor", container: `{"linux":{"security_context":{"apparmor":{"profile_type":"Localhost","localhost_ref":"strict"}}}}`,
		want: []string{"security_context.apparmor", "strict", "not enabled"}},
	{name: "AppArmor profile that is not loaded", container: `{"linux":{"security_context":{"apparmor_profile":"localhost/strict"}}}`,
		scene: func(s *scene) { s.Host.AppArmor, s.AppArmor = true, []string{"other"} }, want: []string{"strict", "not loaded"}},
	{name: "local AppArmor profile without a name", container: `{"linux":{"security_context":{"apparmor":{"profile_type":"Localhost"}}}}`, want: []string{"localhost_ref: empty"}},
	{name: "unknown AppArmor type", container: `{"linux":{"security_context":{"apparmor":{"profile_type":9}}}}`, want: []string{"apparmor.profile_type: 9"}},
	{name: "unknown deprecated AppArmor profile", container: `{"linux":{"security_context":{"apparmor_profile":"strict"}}}`, want: []string{"apparmor_profile", `"strict"`}},

	{name: "device permissions", container: `{"devices":[{"host_path":"/dev/fuse","permissions":"rx"}]}`, want: []string{"devices: /dev/fuse", `"rx"`}},
	{name: "device that is not there", container: `{"devices":[{"host_path":"/dev/fuse","container_path":"/dev/f"}]}`, want: []string{"devices: /dev/fuse", "no device"}},
	{name: "CDI device", container: `{"CDI_devices":[{"name":"vendor.com/gpu=0"}]}`, want: []string{"CDI_devices", "vendor.com/gpu=0", "no specification"}},

	{name: "oom score", container: `{"linux":{"resources":{"oom_score_adj":1001}}}`, want: []string{"oom_score_adj: 1001"}},
	{name: "negative shares", container: `{"linux":{"resources":{"cpu_shares":-2}}}`, want: []string{"linux.resources.cpu_shares: -2"}},
	{name: "negative period", container: `{"linux":{"resources":{"cpu_period":-1}}}`, want: []string{"linux.resources.cpu_period: -1"}},
	{name: "negative memory", container: `{"linux":{"resources":{"memory_limit_in_bytes":-2}}}`, want: []string{"memory_limit_in_bytes: -2"}},
	{name: "swap below memory", container: `{"linux":{"resources":{"memory_limit_in_bytes":100,"memory_swap_limit_in_bytes":50}}}`, want: []string{"memory_swap_limit_in_bytes: 50", "sum"}},
	{name: "swap without memory", container: `{"linux":{"resources":{"memory_swap_limit_in_bytes":50}}}`, want: []string{"memory_swap_limit_in_bytes: 50", "needs a memory_limit_in_bytes"}},
	{name: "huge pages without the controller", container: `{"linux":{"resources":{"hugepage_limits":[{"page_size":"1GB"},{"page_size":"2MB","limit":2097152}]}}}`,
		scene: func(s *scene) { s.Host.Hugetlb = false }, want: []string{"hugepage_limits", "2MB", "hugetlb"}},
	{name: "unified on v1", container: `{"linux":{"resources":{"unified":{"memory.oom.group":"1","memory.high":"1"}}}}`,
		scene: func(s *scene) { s.Host.CgroupV2 = false }, want: []string{"unified: memory.high", "cgroup v2"}},
	{name: "unified that leaves the cgroup", container: `{"linux":{"resources":{"unified":{"../memory.max":"1"}}}}`, want: []string{"unified", `"../memory.max"`}},

	{name: "no pod network", scene: func(s *scene) { delete(s.Namespaces, specs.NetworkNamespace) }, want: []string{"no network namespace"}},
	{name: "target without an id", container: `{"linux":{"security_context":{"namespace_options":{"pid":"TARGET"}}}}`, want: []string{"target_id: empty"}},
	{name: "target without a namespace", container: `{"linux":{"security_context":{"namespace_options":{"pid":"TARGET","target_id":"c-9"}}}}`, want: []string{"target_id", "c-9"}},
	{name: "user namespace without mappings", pod: userns(``), want: []string{"userns_options.uids: 0 mappings"}},
	{name: "two uid mappings", pod: userns(`"uids":[{"host_id":1000,"length":10},{"host_id":2000,"length":10}],"gids":[{"host_id":1000,"length":10}]`), want: []string{"userns_options.uids: 2 mappings", "exactly one"}},
	{name: "no gid mapping", pod: userns(`"uids":[{"host_id":1000,"length":10}]`), want: []string{"userns_options.gids: 0 mappings"}},
	{name: "root not mapped", pod: userns(`"uids":[{"container_id":1,"host_id":1000,"length":10}],"gids":[{"container_id":1,"host_id":1000,"length":10}]`), want: []string{"userns_options.uids", "container_id 1", "root"}},
	{name: "groups mapped otherwise", pod: userns(`"uids":[{"host_id":1000,"length":10}],"gids":[{"host_id":2000,"length":10}]`), want: []string{"userns_options.gids", "differs"}},
	{name: "empty mapping", pod: userns(`"uids":[{"host_id":1000}],"gids":[{"host_id":1000}]`), want: []string{"userns_options.uids", "length 0"}},
	{name: "mapping beyond the last id", pod: userns(`"uids":[{"host_id":4294967290,"length":10}],"gids":[{"host_id":4294967290,"length":10}]`), want: []string{"userns_options.uids", "host_id 4294967290", "last id"}},
	{name: "user namespace of the mode CONTAINER", pod: userns(`"mode":"CONTAINER"`), want: []string{"userns_options.mode", "CONTAINER"}},
	{name: "user namespace of the mode TARGET", pod: userns(`"mode":"TARGET"`), want: []string{"userns_options.mode", "TARGET"}},
	{name: "the node's user namespace with mappings", pod: userns(`"mode":"NODE","uids":[{"host_id":1000,"length":10}]`), want: []string{"userns_options.uids", "NODE"}},
	{name: "user namespace and the node's processes", pod: `{"linux":{"security_context":{"namespace_options":{"pid":"NODE",` + tenIDs + `}}}}`, want: []string{"namespace_options.pid", "NODE"}},
	{name: "user namespace and the node's IPC", pod: `{"linux":{"security_context":{"namespace_options":{"ipc":"NODE",` + tenIDs + `}}}}`, want: []string{"namespace_options.ipc", "NODE"}},
	{name: "user namespace that is not pinned", pod: `{"linux":{"security_context":{"namespace_options":{` + tenIDs + `}}}}`, want: []string{"userns_options", "has no user namespace"}},
	{name: "container with the node's processes in a user namespace", pod: `{"linux":{"security_context":{"namespace_options":{` + tenIDs + `}}}}`, container: `{"linux":{"security_context":{"namespace_options":{"pid":"NODE"}}}}`,
		scene: pinnedUser, want: []string{"namespace_options.pid", "NODE"}},
	{name: "container out of its pod's user namespace", pod: `{"linux":{"security_context":{"namespace_options":{` + tenIDs + `}}}}`, container: userns(`"mode":"NODE"`),
		scene: pinnedUser, want: []string{"userns_options", "differs from the pod's"}},
	{name: "container with a user namespace of its own", container: `{"linux":{"security_context":{"namespace_options":{` + tenIDs + `}}}}`, want: []string{"userns_options", "differs from the pod's"}},
	{name: "container that does not map its root", container: userns(`"uids":[{"container_id":1,"host_id":1000,"length":10}],"gids":[{"container_id":1,"host_id":1000,"length":10}]`), want: []string{"userns_options.uids", "container_id 1"}},
	{name: "user outside the namespace", pod: `{"linux":{"security_context":{"namespace_options":{` + tenIDs + `}}}}`, container: `{"linux":{"security_context":{"run_as_user":{"value":10}}}}`,
		scene: pinnedUser, want: []string{"run_as_user", "user 10", "below 10"}},
	{name: "group outside the namespace", pod: `{"linux":{"security_context":{"namespace_options":{` + tenIDs + `}}}}`, container: `{"linux":{"security_context":{"run_as_user":{"value":1},"run_as_group":{"value":11}}}}`,
		scene: pinnedUser, want: []string{"run_as_group", "group 11"}},
	{name: "supplemental group outside the namespace", pod: `{"linux":{"security_context":{"namespace_options":{` + tenIDs + `}}}}`, container: `{"linux":{"security_context":{"supplemental_groups":[3,12]}}}`,
		scene: pinnedUser, want: []string{"supplemental_groups", "group 12"}},

	{name: "mount without a source", container: `{"mounts":[{"container_path":"/data"}]}`, want: []string{"mounts: /data", "host_path: empty"}},
	{name: "mount that was not found", container: `{"mounts":[{"container_path":"/data","host_path":"/none"}]}`, want: []string{"mounts: /data", "host_path: /none"}},
	{name: "mount over the root", container: `{"mounts":[{"container_path":"/x/..","host_path":"/a"}]}`, want: []string{"container_path", "root file system"}},
	{name: "image volume that would be writable", container: `{"mounts":[{"container_path":"/m","image":{"image":"sha256:1","user_specified_image":"example.org/m:1","runtime_handler":"r","annotations":{"a":"b"},"image_ref":"sha256:1"},"image_sub_path":"a"}]}`,
		want: []string{"mounts: /m", "image", "readonly must be set"}},
	{name: "image volume that was not mounted", container: `{"mounts":[{"container_path":"/m","readonly":true,"image":{"image":"sha256:1"}}]}`,
		want: []string{"mounts: /m", "sha256:1 was not mounted"}},
	{name: "image and host path", container: `{"mounts":[{"container_path":"/m","host_path":"/a","image":{"image":"x"}}]}`, want: []string{"mounts: /m", "one source"}},
	{name: "sub path without an image", container: `{"mounts":[{"container_path":"/m","host_path":"/a","image_sub_path":"x"}]}`, want: []string{"image_sub_path"}},
	{name: "idmapped mount for users alone", container: `{"mounts":[{"container_path":"/m","host_path":"/a","uidMappings":[{"host_id":1,"container_id":7,"length":1}]}]}`,
		want: []string{"mounts: /m", "gidMappings", "together"}},
	{name: "idmapped mount beyond the last id", container: `{"mounts":[{"container_path":"/m","host_path":"/a","uidMappings":[{"host_id":1,"container_id":4294967295,"length":1}],"gidMappings":[{"host_id":1,"container_id":4294967295,"length":1}]}]}`,
		want: []string{"mounts: /m", "uidMappings", "container_id 4294967295"}},
	{name: "idmapped mount of no ids", container: `{"mounts":[{"container_path":"/m","host_path":"/a","uidMappings":[{"host_id":1}],"gidMappings":[{"host_id":1,"length":1}]}]}`,
		want: []string{"mounts: /m", "uidMappings", "length 0"}},
	{name: "unknown propagation", container: `{"mounts":[{"container_path":"/m","host_path":"/a","propagation":5}]}`, want: []string{"propagation: 5"}},
	{name: "unknown mount option", container: `{"mounts":[{"container_path":"/m","host_path":"/a","mount_options":["noexec","suid"]}]}`, want: []string{"mount_options", `"suid"`}},
	{name: "recursive read-only but writable", container: `{"mounts":[{"container_path":"/m","host_path":"/a","recursive_read_only":true}]}`, want: []string{"recursive_read_only: needs readonly"}},
	{name: "terminal on the node's console", container: `{"tty":true,"mounts":[{"container_path":"/dev/","host_path":"/a","propagation":"PROPAGATION_BIDIRECTIONAL"}]}`, want: []string{"tty: ", "/dev/console", "PROPAGATION_HOST_TO_CONTAINER"}},
	{name: "recursive read-only but propagated", container: `{"mounts":[{"container_path":"/m","host_path":"/a","recursive_read_only":true,"readonly":true,"propagation":"PROPAGATION_HOST_TO_CONTAINER"}]}`,
		want: []string{"recursive_read_only: needs private propagation"}},
	{name: "recursive read-only without support", container: `{"mounts":[{"container_path":"/m","host_path":"/a","recursive_read_only":true,"readonly":true}]}`,
		scene: func(s *scene) { s.Host.RecursiveReadOnly = false }, want: []string{"RROUnsupported: "}, is: ErrRROUnsupported},
}

const tenIDs = `"userns_options":{"mode":"POD","uids":[{"host_id":1000,"length":10}],"gids":[{"host_id":1000,"length":10}]}`

// userns fits pods and containers.
func userns(options string) string {
	return `{"linux":{"security_context":{"namespace_options":{"userns_options":{` + options + `}}}}}`
}

func pinnedUser(s *scene) { s.Namespaces[specs.UserNamespace] = "/n/user" }

func localProfiles(s *scene) {
	s.Seccomp = map[string]string{"/p/bad.json": `{"defaultAction":`, "/p/empty.json": `{}`, "/p/list.json": `[]`}
}

func refusalScene(i int) scene {
	r := refusals[i]
	s := ordinary()
	s.Image.Entrypoint = []string{"/entry"}
	s.HostPaths = map[string]string{"/a": "/a"}
	s.Container, s.Pod = []byte(r.container), []byte(r.pod)
	if r.scene != nil {
		r.scene(&s)
	}
	return s
}

func TestRefusals(t *testing.T) {
	for i, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			_, _, err := refusalScene(i).decide(t)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, part := range r.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the message lacks %q: %v", part, err)
				}
			}
			if r.is != nil && !errors.Is(err, r.is) {
				t.Errorf("the error does not match %v: %v", r.is, err)
			}
		})
	}
}

// Clients know the error by its first word (k8s.io/cri-api/pkg/errors).
func TestRROErrorBeginsWithItsName(t *testing.T) {
	for i, r := range refusals {
		if r.is != ErrRROUnsupported {
			continue
		}
		if _, _, err := refusalScene(i).decide(t); !strings.HasPrefix(err.Error(), "RROUnsupported") {
			t.Errorf("got %q", err)
		}
	}
}
