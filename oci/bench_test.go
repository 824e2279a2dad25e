package oci

import "testing"

// The decision is on the path of every container's creation; most of it is the default seccomp profile.
func BenchmarkContainerSpec(b *testing.B) {
	in := readScene(b, "testdata/seccomp_default.json").input(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ContainerSpec(in); err != nil {
			b.Fatal(err)
		}
	}
}
