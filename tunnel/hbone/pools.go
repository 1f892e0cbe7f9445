package hbone

import "sync"

const (
	smallBlock = recordSize     // a frame that fills one record
	bigBlock   = 4 * recordSize // and one that fills four
	plainSize  = 128 << 10
	queueChunk = 16 << 10
)

// pools are the buffers that connections borrow while bytes are on their way; an idle connection
// holds none. They belong to a Budget, and are thus shared as widely as it is.
type pools struct {
	raw, plain, chunks, small, big, queue sync.Pool
}

func newPools() *pools {
	sized := func(n int) func() any {
		return func() any { b := make([]byte, n); return &b }
	}
	p := &pools{}
	p.raw.New, p.plain.New, p.chunks.New = sized(rawSize), sized(plainSize), sized(chunkSize)
	p.small.New, p.big.New, p.queue.New = sized(smallBlock), sized(bigBlock), sized(queueChunk)
	return p
}

func (p *pools) block(big bool) *[]byte {
	if big {
		return p.big.Get().(*[]byte)
	}
	return p.small.Get().(*[]byte)
}

// putBlock takes back a block; one that grew in use is left to the garbage collector.
func (p *pools) putBlock(b *[]byte) {
	*b = (*b)[:cap(*b)]
	switch len(*b) {
	case smallBlock:
		p.small.Put(b)
	case bigBlock:
		p.big.Put(b)
	}
}

// skip returns v without its first n bytes; the slices of v stay as they are.
func skip(v [][]byte, n int) [][]byte {
	for len(v) > 0 && n >= len(v[0]) {
		n -= len(v[0])
		v = v[1:]
	}
	if n > 0 {
		v[0] = v[0][n:]
	}
	return v
}
