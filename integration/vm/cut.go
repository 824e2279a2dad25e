package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/evenkeel/evenkeel/integration/vm/job"
	"github.com/evenkeel/evenkeel/integration/vm/machine"
	"github.com/evenkeel/evenkeel/integration/vm/nbd"
	"github.com/evenkeel/evenkeel/integration/vm/report"
)

// longest is how long a machine works before its power goes, at most. A pod's life takes longer than a pull.
var longest = map[string]time.Duration{"images": 8 * time.Second, "pods": 15 * time.Second}

// survival is the share of unflushed sectors that the disk wrote all the same; one is drawn for each cut.
var survival = []float64{0, 0.5, 0.9, 1}

// powercut boots a machine that pulls images or runs pods, takes its power away at a random moment, boots it again on the same
// disk, and so on. Each boot reads what the engine lists before it pulls again (./powercut).
func (o *options) powercut(ctx context.Context) error {
	if longest[o.mode] == 0 {
		return fmt.Errorf("no power cuts of %q: there are images and pods", o.mode)
	}
	l, err := o.prepare(ctx)
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.program(ctx, "./integration/vm/powercut", guestRoot+"/powercut"); err != nil {
		return err
	}
	bin := guestRoot + "/bin/linux-" + o.arch
	m, err := l.machine(job.Job{Steps: []job.Step{{Name: "powercut", Argv: []string{guestRoot + "/powercut", "-bin", bin, "-mode", l.mode}, Dir: "/",
		Env: append(job.Environment(bin), fmt.Sprintf("EVENKEEL_TEST_SLOWDOWN=%g", o.slowdown))}}})
	if err != nil {
		return err
	}
	c, err := l.cutter(ctx, m)
	if err != nil {
		return err
	}
	defer c.close()
	return c.rounds(ctx)
}

// A cutter has its hand on the switch.
type cutter struct {
	*load
	machine *machine.Machine
	disk    *nbd.Disk
	random  *rand.Rand
	out     string
	socket  net.Listener
	owed    map[string]bool // images whose pulls were answered: they must be there after the next cut
}

func (l *load) cutter(ctx context.Context, m *machine.Machine) (*cutter, error) {
	if l.seed == 0 {
		l.seed = rand.Uint64N(1e9)
	}
	c := &cutter{load: l, machine: m, random: rand.New(rand.NewPCG(l.seed, 0)), owed: map[string]bool{}, out: filepath.Join(l.under(l.out), l.arch+"-powercut-"+l.mode)}
	image, err := l.scratch(ctx)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.RemoveAll(c.out), os.MkdirAll(c.out, 0o755)); err != nil {
		return nil, err
	}
	if c.disk, err = nbd.Open(image); err != nil {
		return nil, err
	}
	socket := filepath.Join(l.dir, "disk.sock")
	if c.socket, err = net.Listen("unix", socket); err != nil {
		return nil, err
	}
	// With several processors the emulator now and then trips over the kernel patching its own code at boot (an int3 Oops), and
	// here is a boot for every cut.
	m.CPUs = 1
	// The machine sees a disk with a write cache and flushes it when its file system says so.
	m.Disk = "format=raw,cache=writeback,file.driver=nbd,file.server.type=unix,file.server.path=" + socket
	return c, nil
}

func (c *cutter) close() {
	c.socket.Close()
	c.disk.Close()
}

func (c *cutter) rounds(ctx context.Context) error {
	fmt.Printf("%s/%s: Linux %s, %d power cuts, seed %d\n", c.arch, c.init, c.set.Release(), c.cuts, c.seed)
	begin := time.Now()
	for n := range c.cuts + 1 {
		last := n == c.cuts
		if err := c.round(ctx, n, last); err != nil {
			return fmt.Errorf("after %d power cuts (seed %d, logs in %s): %w", n, c.seed, c.out, err)
		}
	}
	and := ""
	if c.mode == "pods" {
		and = ", nothing was left of any pod, and every next pod ran"
	}
	fmt.Printf("%d power cuts in %s: no listed image had a wrong byte, every next pull succeeded%s\n", c.cuts, report.Round(time.Since(begin)), and)
	return nil
}

// A boot is one life of the machine, from power on to power off.
type boot struct {
	running *machine.Running
	log     *os.File
	served  chan error  // of the disk
	pulling chan string // what the guest found, when it has found all good and begins to pull
	failed  chan error
	done    chan int
	owed    map[string]bool // the cutter's; listen's alone as long as the machine runs
}

func (c *cutter) boot(ctx context.Context, n int) (b *boot, err error) {
	b = &boot{served: make(chan error, 1), pulling: make(chan string, 1), failed: make(chan error, 2), done: make(chan int, 1), owed: c.owed}
	if b.log, err = os.Create(filepath.Join(c.out, fmt.Sprintf("boot-%d.log", n))); err != nil {
		return nil, err
	}
	c.machine.Console = b.log
	if b.running, err = c.machine.Start(ctx); err != nil {
		return nil, errors.Join(err, b.log.Close())
	}
	go func() { b.served <- c.serve() }()
	go func() { b.done <- b.listen(io.TeeReader(b.running.Output, b.log)) }()
	go b.complain()
	return b, nil
}

var errEnded = errors.New("the machine ended by itself")

// await returns what the guest found, or why there is nothing to wait for.
func (b *boot) await(ctx context.Context) (verified string, err error) {
	select {
	case verified = <-b.pulling:
		return verified, nil
	case err := <-b.failed:
		return "", err
	case <-b.running.Ended():
		return "", errEnded
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// off kills the machine. The guest's own words come before an error of the host about the same.
func (b *boot) off(err error) (done int, _ error) {
	b.running.Kill()
	b.running.Wait()
	done = <-b.done
	select {
	case err = <-b.failed:
	default:
	}
	return done, errors.Join(err, <-b.served, b.log.Close())
}

// round boots, waits until the guest has checked and pulls, and cuts the power after a while. The last round only checks.
func (c *cutter) round(ctx context.Context, n int, last bool) error {
	begin := time.Now()
	b, err := c.boot(ctx, n)
	if err != nil {
		return err
	}
	verified, err := b.await(ctx)
	checked := time.Since(begin)
	wait := time.Duration(c.random.Int64N(int64(longest[c.mode])))
	if err == nil && !last {
		select {
		case <-time.After(wait):
		case <-b.running.Ended():
			err = errEnded
		}
	}
	done, err := b.off(err)
	if err != nil {
		return err
	}
	if last {
		fmt.Printf("boot %d: %s after %s\n", n, verified, report.Round(checked))
		return nil
	}
	kept, lost, err := c.disk.Cut(c.random, survival[c.random.IntN(len(survival))])
	fmt.Printf("boot %d: %s after %s; cut %s later, with %d things done, %d unflushed sectors lost and %d kept\n",
		n, verified, report.Round(checked), wait.Round(time.Millisecond), done, lost, kept)
	return err
}

// serve is the disk's side of one boot.
func (c *cutter) serve() error {
	conn, err := c.socket.Accept()
	if err != nil {
		return err
	}
	return c.disk.Serve(conn)
}

// listen reads what the guest's program says: see ./powercut. It returns how many pulls and pods' lives ended.
func (b *boot) listen(output io.Reader) (done int) {
	verified, damage := "", ""
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case damage != "" || strings.HasPrefix(line, "DAMAGE: "):
			damage += line + "\n" // the program ends after its last words
		case strings.HasPrefix(line, "VERIFIED: "):
			verified = strings.TrimPrefix(line, "VERIFIED: ")
		case line == "PULLING":
			b.pulling <- verified
		case strings.HasPrefix(line, "did "):
			done++
		default:
			if lost := b.account(line); lost != nil {
				b.failed <- lost // now: the program does not know and goes on
			}
		}
	}
	if damage != "" {
		b.failed <- errors.New(damage)
	}
	return done
}

// account keeps the books of what the engine answered for, and says what it does not have any more.
func (b *boot) account(line string) (lost error) {
	what, refs, _ := strings.Cut(line, ": ")
	switch what {
	case "HAS":
		b.owed[refs] = true
	case "LOSES":
		delete(b.owed, refs)
	case "LISTED":
		for ref := range b.owed {
			if !slices.Contains(strings.Fields(refs), ref) {
				lost = errors.Join(lost, fmt.Errorf("the pull of %s was answered, and after the cut the image is gone", ref))
			}
		}
		clear(b.owed)
		for _, ref := range strings.Fields(refs) {
			b.owed[ref] = true
		}
	}
	return lost
}

// complain passes on that the machine gave up.
func (b *boot) complain() {
	for e := range b.running.Events {
		if e.What == job.Failed {
			b.failed <- fmt.Errorf("the machine failed: %s", e.Detail)
		}
	}
}
