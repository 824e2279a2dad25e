package oci

import (
	"fmt"
	"strings"
)

// Clamps says what of the request ContainerSpec lowers to what this machine can give, one sentence each, so that the
// caller can log it. It is empty when the container gets what it asked for.
func Clamps(in Input) []string {
	var notes []string
	resources := in.Container.GetLinux().GetResources()
	if asked, floor := resources.GetOomScoreAdj(), in.Host.OOMScoreFloor; asked < int64(floor) {
		notes = append(notes, fmt.Sprintf("oom_score_adj %d is raised to %d, the lowest this process may set without CAP_SYS_RESOURCE", asked, floor))
	}
	if names := in.withheld(); len(names) > 0 {
		notes = append(notes, strings.Join(names, ", ")+" cannot be granted, because the engine's own bounding set lacks them")
	}
	swap, memory := resources.GetMemorySwapLimitInBytes(), resources.GetMemoryLimitInBytes()
	if !in.Host.Swap && swap != 0 && swap != memory {
		notes = append(notes, fmt.Sprintf("memory_swap_limit_in_bytes %d is not applied, because the kernel does not account swap", swap))
	}
	return notes
}
