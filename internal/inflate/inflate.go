// Package inflate reads gzip (RFC 1952, also of several members) about twice as fast as compress/gzip and
// github.com/klauspost/compress do: of the processor time of a pull, inflating was more than half.
//
// Those decoders take their input byte by byte from any reader. This one has its input in a buffer, keeps up to 63 bits
// of it in a register, looks up eleven bits at a time, and copies eight bytes at a time. The method is that of
// libdeflate. Go checks every index, so a hostile stream can at worst be refused.
package inflate

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

var (
	ErrHeader   = errors.New("gzip: invalid header")
	ErrChecksum = errors.New("gzip: invalid checksum")
	ErrCorrupt  = errors.New("gzip: corrupt deflate stream")
)

const (
	inSize     = 64 << 10
	windowSize = 32 << 10 // how far back a match may reach (RFC 1951, section 2)
	// outSize fits into the second level of any processor's cache, and makes moving the window rare.
	outSize  = 160 << 10
	maxMatch = 258
	// outRoom is left behind what is written: two literals, the longest match, and what a copy of whole words writes too much.
	outRoom = 2 + maxMatch + 8
	inRoom  = 16 // two loads of eight bytes
)

// Reader is a stream being inflated.
type Reader struct {
	src    io.Reader
	srcErr error // of src; what it gave before is in in

	in       [inSize]byte
	pos, end int // of what is not read yet
	bits     uint64
	count    uint // valid bits in bits

	out         [outSize]byte
	given, made int // what was handed out, and what is inflated
	begin       int // of what matches may reach

	stage  func(*Reader) error // reads on until out is full or its part of the stream ends
	err    error               // comes when all of out was handed out
	last   bool                // the block under way is the last of its member
	stored int                 // bytes that the stored block under way still has
	sum    uint32              // CRC-32 of the member so far
	size   uint32              // of the member so far, modulo 2^32

	literals  literalTable
	distances distanceTable
	fixed     bool // the tables are those of fixed codes
}

// NewReader returns a Reader. It reads ahead of what it inflates. What follows the last member must be another one.
func NewReader(src io.Reader) *Reader { return &Reader{src: src, stage: (*Reader).firstHeader} }

func (r *Reader) Read(p []byte) (int, error) {
	for r.given == r.made {
		if r.err != nil {
			return 0, r.err
		}
		r.slide()
		from := r.made
		for r.err == nil && r.made == from {
			r.err = r.stage(r)
		}
		r.sum = crc32.Update(r.sum, crc32.IEEETable, r.out[from:r.made])
		r.size += uint32(r.made - from)
	}
	n := copy(p, r.out[r.given:r.made])
	r.given += n
	return n, nil
}

// slide makes room in out when little is left, all of which was handed out.
func (r *Reader) slide() {
	if outSize-r.made >= outSize/2 {
		return
	}
	copy(r.out[:], r.out[r.made-windowSize:r.made])
	r.begin = max(0, r.begin-(r.made-windowSize))
	r.given, r.made = windowSize, windowSize
}

// more gets more input behind what is not read yet. It returns false at the end of src or after its error.
func (r *Reader) more() bool {
	r.giveBack()
	r.end = copy(r.in[:], r.in[r.pos:r.end])
	r.pos = 0
	for range 100 { // a reader that gives nothing that often is broken, as io.ErrNoProgress has it
		if r.srcErr != nil {
			return false
		}
		var n int
		n, r.srcErr = r.src.Read(r.in[r.end:])
		r.end += n
		if n > 0 {
			return true
		}
	}
	r.srcErr = io.ErrNoProgress
	return false
}

// giveBack returns whole bytes from bits to in.
func (r *Reader) giveBack() {
	r.pos -= int(r.count / 8)
	r.count %= 8
	r.bits &= 1<<r.count - 1
}

// ended is the error where more input is needed than there is.
func (r *Reader) ended() error {
	if r.srcErr == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return r.srcErr
}

// fill gets at least 48 bits into bits, or all that there are.
func (r *Reader) fill() {
	for r.count < 48 {
		if r.pos == r.end {
			if r.srcErr != nil {
				return
			}
			r.more() // may return bytes from bits to in, whatever comes
			continue
		}
		r.bits |= uint64(r.in[r.pos]) << r.count
		r.pos++
		r.count += 8
	}
}

// take returns the next n bits, at most 16.
func (r *Reader) take(n uint) (uint32, error) {
	if r.count < n {
		if r.fill(); r.count < n {
			return 0, r.ended()
		}
	}
	v := uint32(r.bits & (1<<n - 1))
	r.bits >>= n
	r.count -= n
	return v, nil
}

// bytes returns the next n bytes, at most 16, at a byte's border.
func (r *Reader) bytes(n int) ([]byte, error) {
	r.giveBack()
	for r.end-r.pos < n {
		if !r.more() {
			return nil, r.ended()
		}
	}
	b := r.in[r.pos : r.pos+n]
	r.pos += n
	return b, nil
}

func (r *Reader) firstHeader() error {
	if r.pos == r.end && !r.more() {
		return r.srcErr // an empty stream is io.EOF
	}
	return r.header()
}

// nextHeader reads the header of a further member, if there is one.
func (r *Reader) nextHeader() error {
	if r.pos == r.end && !r.more() {
		return r.srcErr
	}
	return r.header()
}

// Flags of a member's header (RFC 1952, section 2.3.1).
const (
	flagSum     = 1 << 1
	flagExtra   = 1 << 2
	flagName    = 1 << 3
	flagComment = 1 << 4
)

func (r *Reader) header() error {
	b, err := r.bytes(10)
	if err != nil {
		return err
	}
	if b[0] != 0x1f || b[1] != 0x8b || b[2] != 8 {
		return ErrHeader
	}
	flags := b[3]
	sum := crc32.ChecksumIEEE(b)
	if flags&flagExtra != 0 {
		if err := r.extra(&sum); err != nil {
			return err
		}
	}
	for _, flag := range []byte{flagName, flagComment} {
		if flags&flag != 0 {
			if err := r.text(&sum); err != nil {
				return err
			}
		}
	}
	if flags&flagSum != 0 {
		b, err := r.bytes(2)
		if err != nil {
			return err
		}
		if binary.LittleEndian.Uint16(b) != uint16(sum) {
			return ErrHeader
		}
	}
	r.begin, r.sum, r.size, r.last = r.made, 0, 0, false
	r.stage = (*Reader).block
	return nil
}

func (r *Reader) extra(sum *uint32) error {
	b, err := r.bytes(2)
	if err != nil {
		return err
	}
	*sum = crc32.Update(*sum, crc32.IEEETable, b)
	for range binary.LittleEndian.Uint16(b) {
		if _, err := r.headerByte(sum); err != nil {
			return err
		}
	}
	return nil
}

// text passes over a name or comment.
func (r *Reader) text(sum *uint32) error {
	for range 64 << 10 {
		b, err := r.headerByte(sum)
		if b == 0 || err != nil {
			return err
		}
	}
	return ErrHeader
}

func (r *Reader) headerByte(sum *uint32) (byte, error) {
	b, err := r.bytes(1)
	if err != nil {
		return 0, err
	}
	*sum = crc32.Update(*sum, crc32.IEEETable, b)
	return b[0], nil
}

// trailer compares what a member held with what it says. All of it has been handed out by now, or summed up at least.
func (r *Reader) trailer() error {
	b, err := r.bytes(8)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b) != r.sum || binary.LittleEndian.Uint32(b[4:]) != r.size {
		return ErrChecksum
	}
	r.stage = (*Reader).nextHeader
	return nil
}

// block begins a block, or ends the member after its last one.
func (r *Reader) block() error {
	if r.last {
		r.bits, r.count = r.bits>>(r.count%8), r.count&^7
		r.stage = (*Reader).trailer
		return nil
	}
	head, err := r.take(3)
	if err != nil {
		return err
	}
	r.last = head&1 != 0
	switch head >> 1 {
	case 0:
		return r.beginStored()
	case 1:
		r.fixedTables()
	case 2:
		if err := r.readTables(); err != nil {
			return err
		}
	default:
		return ErrCorrupt
	}
	r.stage = (*Reader).symbols
	return nil
}

func (r *Reader) beginStored() error {
	r.bits, r.count = r.bits>>(r.count%8), r.count&^7
	b, err := r.bytes(4)
	if err != nil {
		return err
	}
	size := binary.LittleEndian.Uint16(b)
	if size != ^binary.LittleEndian.Uint16(b[2:]) {
		return ErrCorrupt
	}
	r.stored = int(size)
	r.stage = (*Reader).storedBytes
	return nil
}

func (r *Reader) storedBytes() error {
	if r.stored == 0 {
		r.stage = (*Reader).block
		return nil
	}
	if r.pos == r.end && !r.more() {
		return r.ended()
	}
	n := copy(r.out[r.made:], r.in[r.pos:min(r.end, r.pos+r.stored)])
	r.made += n
	r.pos += n
	r.stored -= n
	return nil
}
