package main

import (
	"strings"
	"testing"
)

// TestBadManifests changes one thing of a good manifest and expects an error that names it.
func TestBadManifests(t *testing.T) {
	const good = `apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  containers:
  - name: web
    image: busybox
    env: []
    ports: []
    volumeMounts: []
    securityContext: {}
  volumes:
  - name: data
    emptyDir: {}
`
	if _, err := parseManifest([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, want string }{
		{"name: web\nspec", "name: Web\nspec", "metadata.name: "},
		{"name: web\nspec", "name: web\n  uid: ../../etc\nspec", "metadata.uid: "},
		{"name: web\nspec", "name: web\n  finalizers: [x]\nspec", "metadata.finalizers"},
		{"spec:", "spec:\n  restartPolicy: Sometimes", "spec.restartPolicy: "},
		{"spec:", "spec:\n  dnsPolicy: None", "spec.dnsConfig.nameservers: "},
		{"spec:", "spec:\n  terminationGracePeriodSeconds: -1", "spec.terminationGracePeriodSeconds: "},
		{"spec:", "spec:\n  activeDeadlineSeconds: 5", "spec.activeDeadlineSeconds"},
		{"spec:", "spec:\n  hostPID: true\n  shareProcessNamespace: true", "spec.shareProcessNamespace: "},
		{"spec:", "spec:\n  securityContext: {seLinuxOptions: {level: s0}}", "spec.securityContext.seLinuxOptions"},
		{"spec:", "spec:\n  initContainers: [{name: web, image: x}]", `spec.containers[0].name: "web" is there twice`},
		{"spec:", "spec:\n  initContainers: [{name: i, image: x, restartPolicy: Never}]", "spec.initContainers[0].restartPolicy: "},
		{"spec:", "spec:\n  ephemeralContainers: [{name: i, image: x}]", "spec.ephemeralContainers"},
		{"image: busybox", "restartPolicy: Always\n    image: busybox", "spec.containers[0].restartPolicy: "},
		{"image: busybox", "imag: busybox", `unknown field "spec.containers[0].imag"`},
		{"image: busybox", "image: ''", "spec.containers[0].image: "},
		{"image: busybox", "image: busybox\n    readinessProbe: {exec: {command: [x]}}", "spec.containers[0].readinessProbe"},
		{"image: busybox", "image: busybox\n    envFrom: [{configMapRef: {name: x}}]", "spec.containers[0].envFrom"},
		{"image: busybox", "image: busybox\n    lifecycle: {preStop: {exec: {command: [x]}}}", "spec.containers[0].lifecycle.preStop"},
		{"image: busybox", "image: busybox\n    lifecycle: {stopSignal: SIGNOPE}", "spec.containers[0].lifecycle.stopSignal: "},
		{"image: busybox", "image: busybox\n    resources: {limits: {nvidia.com/gpu: 1}}", "spec.containers[0].resources.limits.nvidia.com/gpu"},
		{"env: []", "env: [{name: 'A=B'}]", "spec.containers[0].env[0].name: "},
		{"env: []", "env: [{name: A, valueFrom: {secretKeyRef: {name: x, key: token}}}]", "spec.containers[0].env[0].valueFrom.secretKeyRef"},
		{"env: []", "env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]", "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: "},
		{"ports: []", "ports: [{containerPort: 70000}]", "spec.containers[0].ports[0].containerPort: "},
		{"ports: []", "ports: [{containerPort: 1, hostPort: 5}, {containerPort: 2, hostPort: 5}]", "spec.containers[0].ports[1].hostPort: "},
		{"spec:", "spec:\n  terminationGracePeriodSeconds: 3000000000", "spec.terminationGracePeriodSeconds: "},
		{"spec:", "spec:\n  securityContext: {supplementalGroupsPolicy: Stric}", "spec.securityContext.supplementalGroupsPolicy: "},
		{"spec:", "spec:\n  os: {name: windows}", "spec.os.name: "},
		{"spec:", "spec:\n  hostAliases: [{ip: here, hostnames: [a]}]", "spec.hostAliases[0].ip: "},
		{"spec:", "spec:\n  initContainers: [{name: i, image: x, restartPolicy: Always, ports: [{containerPort: 0}]}]", "spec.initContainers[0].ports[0].containerPort: "},
		{"image: busybox", "image: busybox\n    imagePullPolicy: Sometimes", "spec.containers[0].imagePullPolicy: "},
		{"image: busybox", "image: busybox\n    resources: {limits: {cpu: -1}}", "spec.containers[0].resources.limits.cpu: "},
		{"image: busybox", "image: busybox\n    resources: {requests: {memory: -1}}", "spec.containers[0].resources.requests.memory: "},
		{"image: busybox", "image: busybox\n    resources: {limits: {cpu: 1}, requests: {cpu: 1500m}}", "spec.containers[0].resources.requests.cpu: 1500m is more than the limit, 1"},
		{"env: []", "env: [{name: A, value: x, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]", "spec.containers[0].env[0]: value and valueFrom"},
		{"env: []", "env: [{name: A, valueFrom: {}}]", "spec.containers[0].env[0].valueFrom: "},
		{"ports: []", "ports: [{containerPort: 1, protocol: udp}]", "spec.containers[0].ports[0].protocol: "},
		{"ports: []", "ports: [{containerPort: 1, hostPort: 1, hostIP: localhost}]", "spec.containers[0].ports[0].hostIP: "},
		{"volumeMounts: []", "volumeMounts: [{name: nope, mountPath: /a}]", "spec.containers[0].volumeMounts[0].name: "},
		{"volumeMounts: []", "volumeMounts: [{name: data, mountPath: a}]", "spec.containers[0].volumeMounts[0].mountPath: "},
		{"volumeMounts: []", "volumeMounts: [{name: data, mountPath: /a}, {name: data, mountPath: /a/}]", "spec.containers[0].volumeMounts[1].mountPath: "},
		{"volumeMounts: []", "volumeMounts: [{name: data, mountPath: /a, subPath: x/../../y}]", "spec.containers[0].volumeMounts[0].subPath: "},
		{"volumeMounts: []", "volumeMounts: [{name: data, mountPath: /a, subPathExpr: x}]", "spec.containers[0].volumeMounts[0].subPathExpr"},
		{"volumeMounts: []", "volumeMounts: [{name: data, mountPath: /a, mountPropagation: Bidirectional}]", "spec.containers[0].volumeMounts[0].mountPropagation: "},
		{"volumeMounts: []", "volumeMounts: [{name: data, mountPath: /a, recursiveReadOnly: Enabled}]", "spec.containers[0].volumeMounts[0].recursiveReadOnly: "},
		{"securityContext: {}", "securityContext: {privileged: true, allowPrivilegeEscalation: false}", "spec.containers[0].securityContext.allowPrivilegeEscalation: "},
		{"securityContext: {}", "securityContext: {procMount: Open}", "spec.containers[0].securityContext.procMount: "},
		{"securityContext: {}", "securityContext: {seccompProfile: {type: Localhost}}", "spec.containers[0].securityContext.seccompProfile.localhostProfile: "},
		{"emptyDir: {}", "emptyDir: {sizeLimit: 1Mi}", "spec.volumes[0].emptyDir.sizeLimit: "},
		{"emptyDir: {}", "emptyDir: {medium: HugePages}", "spec.volumes[0].emptyDir.medium: "},
		{"emptyDir: {}", "hostPath: {path: etc}", "spec.volumes[0].hostPath.path: "},
		{"emptyDir: {}", "configMap: {name: x}", "spec.volumes[0].configMap"},
		{"name: data", "name: ../x", "spec.volumes[0].name: "},
	} {
		text := strings.Replace(good, c.old, c.new, 1)
		if text == good {
			t.Errorf("%q is not in the manifest", c.old)
			continue
		}
		_, err := parseManifest([]byte(text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s:\n got  %v\n want %s", c.new, err, c.want)
		}
	}
}

// TestOneDocument: of several, all but the first would be passed over in silence.
func TestOneDocument(t *testing.T) {
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: b}]}\n"
	for text, want := range map[string]string{
		pod:                           "",
		"---\n" + pod + "---\n":       "",
		"# of\n--- # a pod\n" + pod:   "",
		"---\n# nothing\n---\n" + pod: "",
		"--- {}\n---\n" + pod:         "2 documents (/, Pod/a)",
		pod + "...\n" + pod:           "2 documents (Pod/a, Pod/a)",
		pod + "---\r\nkind: Service\r\nmetadata: {name: s}\r\n": "2 documents (Pod/a, Service/s)",
		pod + "---\n[1]\n":             "2 documents (Pod/a, /)",
		"---\n":                        "it is empty",
		"":                             "it is empty",
		"---\n---\nkind: Pod\nkind: X": "line 4: key \"kind\" already set",
		pod + "---\nkind: [":           "line 6",
	} {
		_, err := parseManifest([]byte(text))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestExpand(t *testing.T) {
	values := map[string]string{"A": "1", "EMPTY": "", "B": "$(A)"}
	for text, want := range map[string]string{
		"":                "",
		"plain":           "plain",
		"$(A)":            "1",
		"x$(A)$(A)y":      "x11y",
		"$(EMPTY)":        "",
		"$(B)":            "$(A)",
		"$(NOPE)":         "$(NOPE)",
		"$$(A)":           "$(A)",
		"$$$(A)":          "$1",
		"$$$$(A)":         "$$(A)",
		"$A ${A} $":       "$A ${A} $",
		"$(A":             "$(A",
		"$(( 1 + 2 )) ok": "$(( 1 + 2 )) ok",
		"$(date) $(A)":    "$(date) 1",
	} {
		if got := expand(text, values); got != want {
			t.Errorf("expand(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestShares(t *testing.T) {
	for milli, want := range map[int64]int64{0: 2, 1: 2, 250: 256, 1000: 1024, 1_000_000: 262144} {
		if got := cpuShares(milli); got != want {
			t.Errorf("cpuShares(%d) = %d, want %d", milli, got, want)
		}
	}
	for milli, want := range map[int64]int64{0: 0, 1: 1000, 500: 50000, 2500: 250000} {
		if got := cpuQuota(milli); got != want {
			t.Errorf("cpuQuota(%d) = %d, want %d", milli, got, want)
		}
	}
}

func TestRunAsNonRoot(t *testing.T) {
	zero, some := int64(0), int64(1000)
	for _, c := range []struct {
		name  string
		user  *int64
		image imageFacts
		want  string
	}{
		{"root asked for", &zero, imageFacts{}, "would run as root"},
		{"root in the image", nil, imageFacts{UID: &zero}, "would run as root"},
		{"nobody in the image", nil, imageFacts{}, "its image runs as root"},
		{"a name in the image", nil, imageFacts{Username: "web"}, `"web"`},
		{"a number in the image", nil, imageFacts{UID: &some}, ""},
		{"a number asked for", &some, imageFacts{Username: "root"}, ""},
	} {
		pod, err := parseManifest([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {securityContext: {runAsNonRoot: true}, containers: [{name: a, image: b}]}"))
		if err != nil {
			t.Fatal(err)
		}
		pod.Spec.SecurityContext.RunAsUser = c.user
		_, err = containerSecurity(pod, &pod.Spec.Containers[0], c.image)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
