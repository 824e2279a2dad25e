package main

import (
	"context"
	"time"
)

// offLimit is less than the 90 s after which systemd gives up on a process that does not end.
const offLimit = 75 * time.Second

// shutdown turns a machine off while the engine and its pods run, and fails when that takes long.
func (o *options) shutdown(ctx context.Context) error {
	o.packages, o.suite, o.env = "./integration", "^TestLeftForShutdown$", []string{"EVENKEEL_TEST_LEAVE=1"}
	return o.test(ctx)
}
