package engine

import (
	"math"
	"os"
	"strconv"
	"time"
)

// slowdownEnv is how many times slower than usual this machine is. An emulated processor takes ten times as long, and
// a test that gave up as early there would say nothing about the engine.
const slowdownEnv = "EVENKEEL_TEST_SLOWDOWN"

func slowdown() float64 {
	factor, err := strconv.ParseFloat(os.Getenv(slowdownEnv), 64)
	if err != nil || factor < 1 {
		return 1
	}
	return factor
}

// Patience is how long to wait on this machine for what takes at most d elsewhere.
func Patience(d time.Duration) time.Duration { return time.Duration(float64(d) * slowdown()) }

// Slow reports whether this machine is so slow that a test may try a selection of its cases. The selection must not
// depend on anything else, so that the same tests run on every slow machine.
func Slow() bool { return slowdown() >= 4 }

// Rounds is how often to do on this machine what is done n times elsewhere: as often as fits into the same time, but
// never less than least.
func Rounds(n, least int) int { return max(least, int(math.Ceil(float64(n)/slowdown()))) }

// Seconds is Patience for the CRI's deadlines, which are whole seconds.
func Seconds(n int64) int64 { return int64(float64(n) * slowdown()) }
