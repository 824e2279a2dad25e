package streaming

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// actClient is a client of an exec that sends what it is sent on stdin, and prints the output.
func actClient(transport, address string) {
	e, err := transports[transport](address)
	if err == nil {
		err = e.StreamWithContext(context.Background(), remotecommand.StreamOptions{Stdin: os.Stdin, Stdout: os.Stdout})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// stuffed starts a client whose command does not read, or slowly, and sends until nothing goes for half a second.
func stuffed(t *testing.T, transport string, s *Server, command ...string) (client *exec.Cmd, stdin io.WriteCloser, sent int, out *bytes.Buffer) {
	t.Helper()
	client = exec.Command(os.Args[0], "client", transport, execURL(t, s, &cri.ExecRequest{Cmd: command, Stdin: true, Stdout: true}))
	out = &bytes.Buffer{}
	client.Stdout, client.Stderr = out, out
	stdin, err := client.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Process.Kill() })
	for chunk := bytes.Repeat([]byte("x"), 4096); ; { // a pipe takes no more than PIPE_BUF or all of it
		stdin.(interface{ SetWriteDeadline(time.Time) error }).SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := stdin.Write(chunk)
		if sent += n; err != nil {
			return client, stdin, sent, out
		}
		if sent > 256<<20 {
			t.Fatal("somebody reads what nobody should")
		}
	}
}

func TestExecThatDoesNotReadEndsWithItsClient(t *testing.T) {
	for what, command := range map[string]string{
		"not at all": "exec sleep 1000",
		"slowly":     "while dd bs=4k count=1 of=/dev/null 2>/dev/null; do sleep 0.1; done",
	} {
		for name := range transports {
			t.Run(what+"/"+name, func(t *testing.T) {
				t.Parallel()
				s, l := serve(t)
				client, _, _, _ := stuffed(t, name, s, "sh", "-c", command)
				client.Process.Kill()
				client.Wait()
				endsWithin(t, l, 5*heartbeatAfter)
			})
		}
	}
}

func TestExecThatReadsLateGetsEveryByte(t *testing.T) {
	for name := range transports {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := serve(t)
			late := fmt.Sprintf("sleep %d; head -c 3000000 | wc -c", int(3*heartbeatAfter/time.Second))
			client, stdin, sent, out := stuffed(t, name, s, "sh", "-c", late)
			stdin.(interface{ SetWriteDeadline(time.Time) error }).SetWriteDeadline(time.Time{})
			go io.Copy(stdin, io.LimitReader(zeros{}, max(0, 3000000-int64(sent))))
			if err := client.Wait(); err != nil || out.String() != "3000000\n" {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestHeartbeatsComeBetweenFrames(t *testing.T) {
	web := func(length int) []byte {
		switch {
		case length < 126:
			return append([]byte{0x82, byte(length)}, make([]byte, length)...)
		case length < 1<<16:
			return append(binary.BigEndian.AppendUint16([]byte{0x82, 126}, uint16(length)), make([]byte, length)...)
		}
		return append(binary.BigEndian.AppendUint64([]byte{0x82, 127}, uint64(length)), make([]byte, length)...)
	}
	spdy := func(length int) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 1}, 1<<24|uint32(length)), make([]byte, length)...)
	}
	for name, c := range map[string]struct {
		framing framing
		frame   func(int) []byte
	}{"WebSocket": {webSocket, web}, "SPDY": {spdy31, spdy}} {
		ends := map[int]bool{}
		stream := []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
		ends[len(stream)] = true
		for _, length := range []int{0, 1, 125, 126, 300, 65535, 65536, 70000} {
			stream = slices.Concat(stream, c.frame(length), c.framing.heartbeat)
			ends[len(stream)], ends[len(stream)-len(c.framing.heartbeat)] = true, true
		}
		for _, step := range []int{1, 3, 1000, len(stream)} {
			f := frames{framing: c.framing}
			for at := 0; at < len(stream); {
				next := min(at+step, len(stream))
				f.wrote(stream[at:next])
				if at = next; f.between() != ends[at] {
					t.Fatalf("%s in steps of %d: after %d bytes between frames: %t", name, step, at, f.between())
				}
			}
		}
	}
}

func TestNoHeartbeatGoesIntoAnAnswerThatIsNoUpgrade(t *testing.T) {
	for _, text := range []string{"", "HTTP/1.1 101 Switching Protocols\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", string(make([]byte, 2*headLimit))} {
		f := frames{framing: webSocket}
		f.wrote([]byte(text))
		if f.wrote(make([]byte, 100)); f.between() {
			t.Errorf("%.40q is followed by heartbeats", text)
		}
	}
}

func TestASessionThatIsReadHasNoHeartbeat(t *testing.T) {
	here, there := net.Pipe()
	n := &conn{Conn: here, conns: &conns{}}
	n.upgrade(webSocket)
	n.frames.wrote([]byte("HTTP/1.1 101 \r\n\r\n"))
	defer n.Close()
	go n.Read(make([]byte, 1))
	there.SetReadDeadline(time.Now().Add(heartbeatAfter + time.Second))
	if got, err := there.Read(make([]byte, 10)); got > 0 || err == nil {
		t.Errorf("%d bytes came, %v", got, err)
	}
}
