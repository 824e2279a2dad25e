package main

import (
	"context"
	"fmt"
	"os"

	"github.com/evenkeel/evenkeel/integration/vm/job"
)

// shell boots the machine of the tests and gives its console to the terminal.
func (o *options) shell(ctx context.Context) error {
	l, err := o.prepare(ctx)
	if err != nil {
		return err
	}
	defer l.close()
	m, err := l.withDisk(ctx, job.Job{Shell: true})
	if err != nil {
		return err
	}
	m.Terminal = true
	fmt.Printf("booting %s/%s; the project's binaries are in %s/bin; `exit` ends the machine, ^A x kills it\n", o.arch, o.init, guestRoot)
	running, err := m.Boot(ctx, func(failed string) { fmt.Fprintf(os.Stderr, "\nvm: trying again, the boot failed: %s\n", failed) })
	if err != nil {
		return err
	}
	for e := range running.Events {
		if e.What == job.Failed {
			fmt.Println(e.Detail)
		}
	}
	return running.Wait()
}
