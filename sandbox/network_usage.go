package sandbox

import (
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/internal/namespace"
)

// defaultInterface is what CNI calls the first interface of a pod, and so does the built-in network.
const defaultInterface = "eth0"

// interfaceCounters is one line of /proc/net/dev (kernel: networking/statistics.rst).
type interfaceCounters struct {
	name                                    string
	rxBytes, rxPackets, rxErrors, rxDropped uint64
	txBytes, txPackets, txErrors, txDropped uint64
}

// networkCounters reads the interfaces of pods, by pod id, the default one first and without loopback. One thread goes
// from one namespace to the next: an open socket or file would keep the namespace of a stopped pod, and with it its
// devices, alive. Pods on the node's network have no counters, nor those whose network is gone.
func networkCounters(pods []*pod) map[string][]interfaceCounters {
	var ids, paths []string
	for _, p := range pods {
		if !p.onHostNetwork() {
			ids, paths = append(ids, p.id), append(paths, filepath.Join(p.namespaceDir(), "net"))
		}
	}
	counted := make(map[string][]interfaceCounters, len(ids))
	var buffer []byte
	namespace.InEachNet(paths, func(i int, err error) {
		if err != nil {
			return
		}
		if buffer, err = readInto(buffer[:0], "/proc/thread-self/net/dev"); err == nil {
			counted[ids[i]] = parseNetDev(string(buffer))
		}
	})
	return counted
}

// readInto appends a file to buffer, on this very thread.
func readInto(buffer []byte, path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return buffer, err
	}
	defer unix.Close(fd)
	for {
		buffer = append(buffer, make([]byte, 4<<10)...)
		n, err := unix.Read(fd, buffer[len(buffer)-4<<10:])
		buffer = buffer[:len(buffer)-4<<10+max(n, 0)]
		if err == unix.EINTR {
			continue
		}
		if n <= 0 || err != nil {
			return buffer, err
		}
	}
}

// parseNetDev reads all lines of /proc/net/dev: two of headings, then one per interface.
func parseNetDev(text string) (list []interfaceCounters) {
	for line := range strings.Lines(text) {
		i, ok := parseInterface(line)
		switch {
		case !ok || i.name == "lo":
		case i.name == defaultInterface && len(list) > 0:
			list = append([]interfaceCounters{i}, list...)
		default:
			list = append(list, i)
		}
	}
	return list
}

// parseInterface reads one interface's line: eight receive counters, then eight transmit counters.
func parseInterface(line string) (interfaceCounters, bool) {
	name, rest, ok := strings.Cut(line, ":")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 16 {
		return interfaceCounters{}, false
	}
	at := func(i int) uint64 {
		n, _ := strconv.ParseUint(fields[i], 10, 64)
		return n
	}
	return interfaceCounters{
		name: strings.TrimSpace(name), rxBytes: at(0), rxPackets: at(1), rxErrors: at(2), rxDropped: at(3),
		txBytes: at(8), txPackets: at(9), txErrors: at(10), txDropped: at(11),
	}, true
}

// networkUsage is nil for a pod without a network of its own.
func networkUsage(interfaces []interfaceCounters, now time.Time) *cri.NetworkUsage {
	if len(interfaces) == 0 {
		return nil
	}
	usage := &cri.NetworkUsage{Timestamp: now.UnixNano()}
	for _, i := range interfaces {
		one := &cri.NetworkInterfaceUsage{Name: i.name, RxBytes: number(i.rxBytes), RxErrors: number(i.rxErrors), TxBytes: number(i.txBytes), TxErrors: number(i.txErrors)}
		if usage.DefaultInterface == nil {
			usage.DefaultInterface = one
		} else {
			usage.Interfaces = append(usage.Interfaces, one)
		}
	}
	return usage
}
