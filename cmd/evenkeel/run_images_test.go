package main

import (
	"testing"

	v1 "k8s.io/api/core/v1"
)

// TestStrictestPolicy: whichever container comes first, the image is pulled as the one demands that demands most.
func TestStrictestPolicy(t *testing.T) {
	for _, c := range []struct {
		flag       string
		containers []v1.PullPolicy
		want       v1.PullPolicy
	}{
		{"", []v1.PullPolicy{""}, v1.PullIfNotPresent},
		{"", []v1.PullPolicy{v1.PullIfNotPresent, v1.PullAlways}, v1.PullAlways},
		{"", []v1.PullPolicy{v1.PullAlways, ""}, v1.PullAlways},
		{"", []v1.PullPolicy{"", v1.PullNever}, v1.PullNever},
		{"", []v1.PullPolicy{v1.PullNever, v1.PullAlways}, v1.PullAlways},
		{"never", []v1.PullPolicy{v1.PullAlways, v1.PullAlways}, v1.PullNever},
		{"missing", []v1.PullPolicy{v1.PullNever, v1.PullAlways}, v1.PullIfNotPresent},
	} {
		pod := &v1.Pod{}
		pod.Spec.Containers = []v1.Container{{Image: "other", ImagePullPolicy: v1.PullAlways}}
		for i, policy := range c.containers {
			list := &pod.Spec.Containers
			if i == 0 {
				list = &pod.Spec.InitContainers
			}
			*list = append(*list, v1.Container{Image: "image", ImagePullPolicy: policy})
		}
		if got := strictestPolicy(pod, "image", c.flag); got != c.want {
			t.Errorf("--pull=%q, containers %q: %s, want %s", c.flag, c.containers, got, c.want)
		}
	}
}
