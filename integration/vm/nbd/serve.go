package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// Numbers of the protocol, doc/proto.md.
const (
	greeting     = "NBDMAGICIHAVEOPT"
	optionMagic  = 0x49484156454f5054
	replyMagic   = 0x3e889045565a9
	requestMagic = 0x25609513
	answerMagic  = 0x67446698

	fixedNewstyle = 1 // and no zeroes, which is 2

	optExportName = 1
	optAbort      = 2
	optInfo       = 6
	optGo         = 7

	repAck         = 1
	repInfo        = 3
	repUnsupported = 1<<31 + 1

	// has flags, can flush, can FUA
	transmission = 1 | 1<<2 | 1<<3

	cmdRead  = 0
	cmdWrite = 1
	cmdDisc  = 2
	cmdFlush = 3
	flagFUA  = 1

	invalid = 22 // EINVAL
	failed  = 5  // EIO
)

const most = 64 << 20 // bytes in one request

// Serve answers one client until it goes. A client that was killed is no error.
func (d *Disk) Serve(conn net.Conn) error {
	defer conn.Close()
	c := &client{disk: d, conn: conn}
	if err := c.negotiate(); err != nil {
		return fmt.Errorf("cannot agree with the client of the disk: %w", err)
	}
	for {
		more, err := c.request()
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, net.ErrClosed) {
			var gone *net.OpError
			if errors.As(err, &gone) {
				return nil
			}
			return err
		}
		if err != nil || !more {
			return nil
		}
	}
}

type client struct {
	disk    *Disk
	conn    net.Conn
	noZeros bool
}

func (c *client) send(parts ...any) error {
	var buf []byte
	var err error
	for _, p := range parts {
		if buf, err = binary.Append(buf, binary.BigEndian, p); err != nil {
			return err
		}
	}
	_, err = c.conn.Write(buf)
	return err
}

func (c *client) read(to any) error { return binary.Read(c.conn, binary.BigEndian, to) }

func (c *client) negotiate() error {
	if err := c.send([]byte(greeting), uint16(fixedNewstyle|2)); err != nil {
		return err
	}
	var flags uint32
	if err := c.read(&flags); err != nil {
		return err
	}
	c.noZeros = flags&2 != 0
	for {
		if done, err := c.option(); done || err != nil {
			return err
		}
	}
}

// option answers one question; done means that requests follow.
func (c *client) option() (done bool, err error) {
	var o struct {
		Magic          uint64
		Option, Length uint32
	}
	if err := c.read(&o); err != nil {
		return false, err
	}
	if o.Magic != optionMagic || o.Length > 1<<16 {
		return false, errors.New("that is no option")
	}
	if _, err := io.CopyN(io.Discard, c.conn, int64(o.Length)); err != nil { // the export's name: there is one export
		return false, err
	}
	switch o.Option {
	case optExportName:
		zeros := make([]byte, 124)
		if c.noZeros {
			zeros = nil
		}
		return true, c.send(uint64(c.disk.size), uint16(transmission), zeros)
	case optGo, optInfo:
		export := []any{uint16(0), uint64(c.disk.size), uint16(transmission)}
		if err := c.reply(o.Option, repInfo, 12, export...); err != nil {
			return false, err
		}
		return o.Option == optGo, c.reply(o.Option, repAck, 0)
	case optAbort:
		c.reply(o.Option, repAck, 0)
		return false, errors.New("the client gave up")
	default:
		return false, c.reply(o.Option, repUnsupported, 0)
	}
}

func (c *client) reply(option, kind, length uint32, data ...any) error {
	return c.send(append([]any{uint64(replyMagic), option, kind, length}, data...)...)
}

func (c *client) request() (more bool, err error) {
	var q struct {
		Magic       uint32
		Flags, Type uint16
		Handle      uint64
		Offset      uint64
		Length      uint32
	}
	if err := c.read(&q); err != nil {
		return false, err
	}
	if q.Magic != requestMagic || q.Length > most {
		return false, errors.New("that is no request")
	}
	code, data := uint32(0), []byte(nil)
	switch q.Type {
	case cmdRead:
		data = make([]byte, q.Length)
		if _, err := c.disk.ReadAt(data, int64(q.Offset)); err != nil {
			code, data = failed, nil
		}
	case cmdWrite:
		if code, err = c.write(int64(q.Offset), q.Length, q.Flags&flagFUA != 0); err != nil {
			return false, err
		}
	case cmdFlush:
		if c.disk.Flush() != nil {
			code = failed
		}
	case cmdDisc:
		return false, nil
	default:
		code = invalid
	}
	return true, c.send(uint32(answerMagic), code, q.Handle, data)
}

func (c *client) write(at int64, length uint32, force bool) (code uint32, err error) {
	data := make([]byte, length)
	if _, err := io.ReadFull(c.conn, data); err != nil {
		return 0, err
	}
	if _, err := c.disk.WriteAt(data, at); err != nil {
		return failed, nil
	}
	if force && c.disk.Force(at, int64(length)) != nil {
		return failed, nil
	}
	return 0, nil
}
