package inflate

import "encoding/binary"

// symbols inflates a block until it ends or out is full.
func (r *Reader) symbols() error {
	for r.made <= outSize-outRoom {
		if r.end-r.pos >= inRoom {
			if done, err := r.quick(); done || err != nil {
				return err
			}
			continue
		}
		if done, err := r.careful(); done || err != nil {
			return err
		}
	}
	return nil
}

// endOfBlock is what quick and careful return where a block ends.
func (r *Reader) endOfBlock() (bool, error) {
	r.stage = (*Reader).block
	return true, nil
}

// quick inflates as long as no symbol can need more input or room than there is. What bits holds above count is the
// input that follows: reading it again changes nothing, so whole words are read without a look at how many bytes fit.
// It leaves rare symbols to careful: long codes, the end of a block, and what is no code.
func (r *Reader) quick() (done bool, err error) {
	in, out := &r.in, &r.out
	literals, distances := &r.literals, &r.distances
	pos, made, bits, count := r.pos, r.made, r.bits, r.count
	for lastIn := r.end - inRoom; pos <= lastIn && made <= outSize-outRoom; {
		bits |= binary.LittleEndian.Uint64(in[pos:]) << (count & 63)
		pos += int((63 - count) >> 3)
		count |= 56
		e := literals[bits&(1<<literalBits-1)]
		if e&isLiteral != 0 { // two take 22 bits at most
			bits >>= e & 63
			count -= uint(e & 63)
			out[made] = byte(e >> 16)
			made++
			e = literals[bits&(1<<literalBits-1)]
			if e&isLiteral != 0 {
				bits >>= e & 63
				count -= uint(e & 63)
				out[made] = byte(e >> 16)
				made++
				continue
			}
			bits |= binary.LittleEndian.Uint64(in[pos:]) << (count & 63)
			pos += int((63 - count) >> 3)
			count |= 56
		}
		length := int(e>>16) + int(bits&(1<<(e&63)-1)>>(e>>8&31))
		rest := bits >> (e & 63)
		d := distances[rest&(1<<distanceBits-1)]
		if e&special != 0 || d&special != 0 {
			r.pos, r.made, r.bits, r.count = pos, made, bits&(1<<count-1), count
			return r.careful()
		}
		distance := int(d>>16) + int(rest&(1<<(d&63)-1)>>(d>>8&31))
		from := made - distance
		if from < r.begin {
			return false, ErrCorrupt
		}
		bits = rest >> (d & 63)
		count -= uint(e&63) + uint(d&63) // 20 and 28 at most
		end := made + length
		if distance < 8 {
			made = repeat(out, from, made, end)
			continue
		}
		for ; made < end; made, from = made+8, from+8 {
			binary.LittleEndian.PutUint64(out[made:], binary.LittleEndian.Uint64(out[from:]))
		}
		made = end
	}
	r.pos, r.made, r.bits, r.count = pos, made, bits&(1<<count-1), count
	return false, nil
}

// repeat copies a match that overlaps what it makes.
func repeat(out *[outSize]byte, from, made, end int) int {
	for ; made < end; made, from = made+1, from+1 {
		out[made] = out[from]
	}
	return made
}

// careful inflates one symbol, near the end of the input at hand.
func (r *Reader) careful() (done bool, err error) {
	r.fill()
	e, err := r.lookUp(r.literals[:], literalBits)
	if err != nil {
		return false, err
	}
	if e&isLiteral != 0 {
		r.out[r.made] = byte(e >> 16)
		r.made++
		return false, nil
	}
	if e&isEnd != 0 {
		return r.endOfBlock()
	}
	length := int(e >> 16)
	r.fill()
	d, err := r.lookUp(r.distances[:], distanceBits)
	if err != nil {
		return false, err
	}
	from := r.made - int(d>>16)
	if from < r.begin {
		return false, ErrCorrupt
	}
	r.made = repeat(&r.out, from, r.made, r.made+length)
	return false, nil
}

// lookUp takes a code with its extra bits and returns its entry, whose base is the whole value.
func (r *Reader) lookUp(table []uint32, width uint) (uint32, error) {
	e := table[r.bits&(1<<width-1)]
	taken := uint(0)
	if e&isLink != 0 {
		taken = width
		e = table[uint(e>>16)+uint(r.bits>>width)&(1<<(e>>8&31)-1)]
	}
	if e&isInvalid != 0 {
		if r.count < maxCode { // the missing bits could have made it one
			return 0, r.ended()
		}
		return 0, ErrCorrupt
	}
	all := taken + uint(e&0xff)
	if r.count < all {
		return 0, r.ended()
	}
	code := taken + uint(e>>8&31)
	value := e>>16&^(isLiteral>>16) + uint32(r.bits&(1<<all-1)>>code)
	r.bits >>= all
	r.count -= all
	return e&(isLiteral|special) | value<<16, nil
}
