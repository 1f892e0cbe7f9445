package hbone

import "sync/atomic"

// DefaultBudget is the size of a connection's budget when none is shared.
const DefaultBudget = 64 << 20

// Budget bounds the bytes that connections hold for applications which do not read. Flow control
// bounds one stream; a budget bounds all of them together: windows stop growing at half of it, and
// a stream that needs memory beyond it is reset.
type Budget struct {
	limit int64
	used  atomic.Int64
	pools *pools
}

// NewBudget returns a budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit, pools: newPools()} }

// Used returns the bytes held at the moment.
func (b *Budget) Used() int64 { return b.used.Load() }

// Limit returns the bytes that may be held.
func (b *Budget) Limit() int64 { return b.limit }

func (b *Budget) take(n int) bool {
	if b.used.Add(int64(n)) <= b.limit {
		return true
	}
	b.used.Add(int64(-n))
	return false
}

func (b *Budget) release(n int) { b.used.Add(int64(-n)) }

// roomy reports whether windows may grow.
func (b *Budget) roomy() bool { return b.used.Load() < b.limit/2 }
