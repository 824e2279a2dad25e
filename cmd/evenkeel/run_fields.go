package main

import (
	"fmt"
	"reflect"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// supportedFields are the fields of a Pod that `run` acts on, or that cannot change what a pod does on one machine. A path
// covers all below it when it ends in an asterisk. [] stands for every element and {} for every key.
var supportedFields = pathSet(`
	apiVersion kind status*
	metadata.name metadata.namespace metadata.uid metadata.labels* metadata.annotations*
	metadata.creationTimestamp metadata.resourceVersion metadata.generation metadata.selfLink metadata.generateName
	metadata.managedFields* metadata.ownerReferences*

	spec.restartPolicy spec.terminationGracePeriodSeconds spec.dnsPolicy spec.dnsConfig* spec.hostNetwork spec.hostPID
	spec.hostIPC spec.shareProcessNamespace spec.hostname spec.hostAliases*
	spec.securityContext.runAsUser spec.securityContext.runAsGroup spec.securityContext.runAsNonRoot
	spec.securityContext.supplementalGroups* spec.securityContext.supplementalGroupsPolicy spec.securityContext.fsGroup
	spec.securityContext.sysctls* spec.securityContext.seccompProfile* spec.securityContext.appArmorProfile*
	spec.volumes[].name spec.volumes[].emptyDir* spec.volumes[].hostPath*

	spec.nodeName spec.nodeSelector* spec.affinity* spec.tolerations* spec.schedulerName spec.priority
	spec.priorityClassName spec.preemptionPolicy spec.topologySpreadConstraints* spec.serviceAccountName
	spec.serviceAccount spec.automountServiceAccountToken spec.enableServiceLinks spec.os*
	`) + containerFields("spec.containers[]") + containerFields("spec.initContainers[]")

func containerFields(at string) pathList {
	return pathSet(strings.ReplaceAll(`
	@.name @.image @.command* @.args* @.workingDir @.imagePullPolicy @.restartPolicy @.stdin @.stdinOnce @.tty
	@.env[].name @.env[].value @.env[].valueFrom.fieldRef*
	@.ports* @.resources.limits{cpu} @.resources.limits{memory} @.resources.requests{cpu} @.resources.requests{memory}
	@.volumeMounts[].name @.volumeMounts[].mountPath @.volumeMounts[].subPath @.volumeMounts[].readOnly
	@.volumeMounts[].mountPropagation @.volumeMounts[].recursiveReadOnly
	@.securityContext.runAsUser @.securityContext.runAsGroup @.securityContext.runAsNonRoot
	@.securityContext.capabilities* @.securityContext.privileged @.securityContext.readOnlyRootFilesystem
	@.securityContext.allowPrivilegeEscalation @.securityContext.seccompProfile* @.securityContext.appArmorProfile*
	@.securityContext.procMount @.lifecycle.stopSignal
	@.terminationMessagePath @.terminationMessagePolicy
	`, "@", at))
}

// pathList is a set of paths, each between newlines.
type pathList string

func pathSet(text string) pathList {
	return pathList("\n" + strings.Join(strings.Fields(text), "\n") + "\n")
}

// covers tells whether the path itself is listed, or one of its parents with an asterisk.
func (l pathList) covers(path string) bool {
	if strings.Contains(string(l), "\n"+path+"\n") {
		return true
	}
	for i := len(path); i > 0; i-- {
		if i == len(path) || strings.IndexByte(".[{", path[i]) >= 0 {
			if strings.Contains(string(l), "\n"+path[:i]+"*\n") {
				return true
			}
		}
	}
	return false
}

// unsupportedFields is an error that names every field in use that `run` could only ignore.
func unsupportedFields(pod *v1.Pod) error {
	var found []string
	findUnsupported(reflect.ValueOf(*pod), "", "", &found)
	if len(found) > 0 {
		return fmt.Errorf("not supported by evenkeel run, and not silently ignored: %s", strings.Join(found, ", "))
	}
	return nil
}

// findUnsupported walks what is set. It names the highest field below which nothing is supported, as in
// spec.containers[0].livenessProbe, with generic being the same path without indices.
func findUnsupported(v reflect.Value, path, generic string, found *[]string) {
	switch {
	case v.IsZero() || generic != "" && supportedFields.covers(generic):
		return
	case generic != "" && !supportedFields.below(generic):
		*found = append(*found, path)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		findUnsupported(v.Elem(), path, generic, found)
	case reflect.Struct:
		for i := range v.NumField() {
			name, inline := jsonName(v.Type().Field(i))
			if inline {
				findUnsupported(v.Field(i), path, generic, found)
				continue
			}
			findUnsupported(v.Field(i), join(path, name), join(generic, name), found)
		}
	case reflect.Slice:
		for i := range v.Len() {
			findUnsupported(v.Index(i), fmt.Sprintf("%s[%d]", path, i), generic+"[]", found)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			findUnsupported(v.MapIndex(key), fmt.Sprintf("%s.%s", path, key), fmt.Sprintf("%s{%s}", generic, key), found)
		}
	}
}

// below tells whether any path under this one is listed.
func (l pathList) below(path string) bool {
	for _, next := range []string{".", "[", "{"} {
		if strings.Contains(string(l), "\n"+path+next) {
			return true
		}
	}
	return false
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func jsonName(f reflect.StructField) (name string, inline bool) {
	name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name, name == "" || strings.Contains(rest, "inline")
}
