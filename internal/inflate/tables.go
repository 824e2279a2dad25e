package inflate

import "math/bits"

// A table is indexed by the next bits of the input. What it says of them is one number:
//
//	bits 0-7    how many bits to take: of the code, and of the extra bits behind it
//	bits 8-12   how many of them are the code's
//	bits 16-30  the literal, the base of the length or distance, or where the codes go on that are longer than the index
//	bit 13      it ends the block
//	bit 14      the codes go on; bits 8-12 are the number of bits of the further index
//	bit 15      no code begins so
//	bit 31      it is a literal
const (
	isLiteral = 1 << 31
	isInvalid = 1 << 15
	isLink    = 1 << 14
	isEnd     = 1 << 13
	special   = isInvalid | isLink | isEnd

	literalBits  = 11
	distanceBits = 10
	maxCode      = 15 // bits of the longest code
)

// The tables need at most 2342 entries (zlib's enough.c) and 1184: a further table of 32 serves six codes at least, and
// there are 30. More would be refused by fillTable.
type (
	literalTable  [4096]uint32
	distanceTable [1280]uint32
)

// What symbols mean (RFC 1951, section 3.2.5), as in a table, less the code's bits.
var literalMeaning, distanceMeaning = meanings()

func meanings() (l [288]uint32, d [32]uint32) {
	for i := range 256 {
		l[i] = isLiteral | uint32(i)<<16
	}
	l[256] = isEnd
	base := uint32(3)
	for i := range uint32(28) {
		extra := uint32(0)
		if i >= 8 {
			extra = i/4 - 1
		}
		l[257+i] = base<<16 | extra
		base += 1 << extra
	}
	l[285] = maxMatch << 16
	l[286], l[287] = isInvalid, isInvalid
	base = 1
	for i := range uint32(30) {
		extra := uint32(0)
		if i >= 4 {
			extra = i/2 - 1
		}
		d[i] = base<<16 | extra
		base += 1 << extra
	}
	d[30], d[31] = isInvalid, isInvalid
	return l, d
}

// build fills a table, whose index has width bits, for symbols with codes of the given lengths; 0: no code. It returns
// false if there is no such code: too many short ones, or too few. A single code of one bit, and none at all, are
// allowed, as every decoder does.
func build(table []uint32, width int, lengths []uint8, meaning []uint32) bool {
	var counts [maxCode + 1]int
	for _, n := range lengths {
		counts[n]++
	}
	used := len(lengths) - counts[0]
	counts[0] = 0
	var next [maxCode + 2]int // the first code of each length
	for n := 1; n <= maxCode; n++ {
		next[n+1] = (next[n] + counts[n]) << 1
		if next[n]+counts[n] > 1<<n {
			return false
		}
	}
	complete := next[maxCode+1] == 1<<(maxCode+1)
	if !complete && !(used == 0 || used == 1 && counts[1] == 1) {
		return false
	}
	for i := range table[:1<<width] {
		table[i] = isInvalid
	}
	return fillTable(table, width, lengths, meaning, next)
}

func fillTable(table []uint32, width int, lengths []uint8, meaning []uint32, next [maxCode + 2]int) bool {
	var deepest [1 << literalBits]uint8 // the longest code behind each index
	codes := make([]uint16, 0, 320)
	for _, n := range lengths {
		code := uint16(0)
		if n > 0 {
			code = bits.Reverse16(uint16(next[n])) >> (16 - n)
			next[n]++
		}
		codes = append(codes, code)
		if int(n) > width {
			prefix := code & (1<<width - 1)
			deepest[prefix] = max(deepest[prefix], n)
		}
	}
	end := 1 << width
	for symbol, n := range lengths {
		if n == 0 {
			continue
		}
		code, length, part := int(codes[symbol]), int(n), table[:1<<width]
		if length > width {
			prefix := code & (1<<width - 1)
			wide := int(deepest[prefix]) - width
			if table[prefix]&isLink == 0 {
				if end+1<<wide > len(table) {
					return false
				}
				table[prefix] = isLink | uint32(end)<<16 | uint32(wide)<<8 | uint32(width)
				for i := range 1 << wide {
					table[end+i] = isInvalid
				}
				end += 1 << wide
			}
			start := int(table[prefix] >> 16)
			part = table[start : start+1<<wide]
			code >>= width
			length -= width
		}
		entry := entryOf(meaning[symbol], uint32(length))
		for i := code; i < len(part); i += 1 << length {
			part[i] = entry
		}
	}
	return true
}

// entryOf joins what a symbol means with how long its code is.
func entryOf(meaning, length uint32) uint32 {
	extra := meaning & 0xff
	return meaning&^0xff | length<<8 | (length + extra)
}

func (r *Reader) fixedTables() {
	if r.fixed {
		return
	}
	var lengths [288]uint8
	for i := range lengths {
		switch {
		case i < 144:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		case i < 280:
			lengths[i] = 7
		default:
			lengths[i] = 8
		}
	}
	build(r.literals[:], literalBits, lengths[:], literalMeaning[:])
	for i := range 32 {
		lengths[i] = 5
	}
	build(r.distances[:], distanceBits, lengths[:32], distanceMeaning[:])
	r.fixed = true
}

// lengthOrder is the order in which the lengths of the lengths' codes come (RFC 1951, section 3.2.7).
var lengthOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

const lengthBits = 7

// readTables reads the codes of a dynamic block.
func (r *Reader) readTables() error {
	r.fixed = false
	head, err := r.take(14)
	if err != nil {
		return err
	}
	literals, distances, n := int(head&31)+257, int(head>>5&31)+1, int(head>>10)+4
	if literals > 286 || distances > 30 {
		return ErrCorrupt
	}
	var short [19]uint8
	for _, i := range lengthOrder[:n] {
		v, err := r.take(3)
		if err != nil {
			return err
		}
		short[i] = uint8(v)
	}
	var meaning [19]uint32
	for i := range meaning {
		meaning[i] = uint32(i) << 16
	}
	var table [1 << lengthBits]uint32
	if !build(table[:], lengthBits, short[:], meaning[:]) {
		return ErrCorrupt
	}
	var lengths [286 + 30]uint8
	if err := r.readLengths(lengths[:literals+distances], &table); err != nil {
		return err
	}
	if !build(r.literals[:], literalBits, lengths[:literals], literalMeaning[:]) ||
		!build(r.distances[:], distanceBits, lengths[literals:literals+distances], distanceMeaning[:]) {
		return ErrCorrupt
	}
	return nil
}

func (r *Reader) readLengths(lengths []uint8, table *[1 << lengthBits]uint32) error {
	for i := 0; i < len(lengths); {
		r.fill()
		entry := table[r.bits&(1<<lengthBits-1)]
		if entry&isInvalid != 0 && r.count >= lengthBits {
			return ErrCorrupt
		}
		if entry&isInvalid != 0 {
			return r.ended()
		}
		if _, err := r.take(uint(entry & 0xff)); err != nil {
			return err
		}
		symbol := uint8(entry >> 16)
		if symbol < 16 {
			lengths[i] = symbol
			i++
			continue
		}
		n, value, err := r.repeat(symbol, lengths[:i])
		if err != nil {
			return err
		}
		if i+n > len(lengths) {
			return ErrCorrupt
		}
		for ; n > 0; n-- {
			lengths[i] = value
			i++
		}
	}
	return nil
}

// repeat reads how often a length comes again: the one before (16) or none (17, 18).
func (r *Reader) repeat(symbol uint8, before []uint8) (n int, value uint8, err error) {
	extra, base := uint(2), 3
	switch symbol {
	case 16:
		if len(before) == 0 {
			return 0, 0, ErrCorrupt
		}
		value = before[len(before)-1]
	case 17:
		extra = 3
	case 18:
		extra, base = 7, 11
	}
	v, err := r.take(extra)
	return base + int(v), value, err
}
