package shim

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evenkeel/evenkeel/oci/runc"
)

// One connection carries one request and one reply: four bytes of length, big endian, then a JSON object. Descriptors
// travel with the first byte (SCM_RIGHTS). The sockets are streams, because a SOCK_SEQPACKET message must fit the socket's
// send buffer (208 KiB) and the process document of an exec, which holds the environment, need not. Either side that
// closes its end ends the call.
//
// Fields are added, never changed in meaning: a reader drops those it does not know, so that a daemon of one version
// understands the shims of the two before it.

// messageLimit is above what execve takes as arguments and environment together.
const messageLimit = 16 << 20

type request struct {
	Version       int
	Call          string
	ID            string         `json:",omitempty"`
	Create        *CreateRequest `json:",omitempty"`
	Init          *InitRequest   `json:",omitempty"`
	Process       []byte         `json:",omitempty"`
	ConsoleSocket string         `json:",omitempty"`
	KillRest      bool           `json:",omitempty"`
	Signal        int            `json:",omitempty"`
	Width, Height uint16         `json:",omitempty"`
	Files         [3]bool        // which of stdin, stdout and stderr came along, in this order
}

type reply struct {
	Version int
	Error   *failure  `json:",omitempty"`
	State   *State    `json:",omitempty"`
	Process *Process  `json:",omitempty"`
	At      time.Time `json:",omitzero"`
	Exit    *Exit     `json:",omitempty"`
}

// failure is an error in transit.
type failure struct {
	Kind    string `json:",omitempty"` // notFound, runtime or empty
	Message string
	// An error of the runtime, so that runc.ErrExecutable works at the other end.
	Runtime *runc.Error `json:",omitempty"`
}

func failureOf(err error) *failure {
	f := &failure{Message: err.Error()}
	if errors.Is(err, ErrNotFound) {
		f.Kind = "notFound"
	}
	if e := (*runc.Error)(nil); errors.As(err, &e) {
		f.Kind, f.Runtime = "runtime", e
	}
	return f
}

// remote is an error that arrived: the words of the shim, and what errors.Is and As can know about it.
type remote struct {
	message string
	cause   error
}

func (r *remote) Error() string { return r.message }
func (r *remote) Unwrap() error { return r.cause }

func (f *failure) error() error {
	r := &remote{message: f.Message}
	switch {
	case f.Kind == "notFound":
		r.cause = ErrNotFound
	case f.Runtime != nil:
		r.cause = f.Runtime
	}
	return r
}

func send(conn *os.File, message any, files ...*os.File) error {
	body, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(body) > messageLimit { // the other side would hang up without a word
		return tooLong(len(body))
	}
	data := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	n, err := sendmsg(conn, data, rights)
	if err != nil || n == len(data) { // the peer may have answered and gone: not even nothing can be written then
		return err
	}
	_, err = conn.Write(data[n:])
	return err
}

func sendmsg(conn *os.File, data, rights []byte) (n int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		n, sendErr = unix.SendmsgN(int(fd), data, rights, nil, unix.MSG_NOSIGNAL)
		return sendErr != unix.EAGAIN && sendErr != unix.EINTR
	})
	if err == nil {
		err = sendErr
	}
	return n, err
}

// receive fills message and returns the descriptors that came with it. io.EOF means the other side closed without a word.
func receive(conn *os.File, message any) ([]*os.File, error) {
	var head [4]byte
	n, files, err := recvmsg(conn, head[:])
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err == nil {
		_, err = io.ReadFull(conn, head[n:])
	}
	if err == nil {
		err = receiveBody(conn, binary.BigEndian.Uint32(head[:]), message)
	}
	if err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

func receiveBody(conn *os.File, size uint32, message any) error {
	if size > messageLimit {
		return tooLong(int(size))
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(conn, body); err != nil {
		return err
	}
	return json.Unmarshal(body, message)
}

func tooLong(size int) error {
	return fmt.Errorf("message of %d bytes is longer than %d", size, messageLimit)
}

func recvmsg(conn *os.File, data []byte) (n int, files []*os.File, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	rights := make([]byte, unix.CmsgSpace(3*4))
	var got int
	var recvErr error
	err = raw.Read(func(fd uintptr) bool {
		n, got, _, _, recvErr = unix.Recvmsg(int(fd), data, rights, unix.MSG_CMSG_CLOEXEC)
		return recvErr != unix.EAGAIN && recvErr != unix.EINTR
	})
	if err == nil {
		err = recvErr
	}
	if err != nil || got == 0 {
		return max(n, 0), nil, err
	}
	files, err = filesOf(rights[:got])
	return n, files, err
}

func filesOf(rights []byte) (files []*os.File, err error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
