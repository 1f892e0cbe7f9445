package source

import (
	"hash/maphash"
	"iter"
	"maps"
)

// shards bounds what one change copies: with 50,000 entries a shard has about 200.
const shards = 256

// table is a map of which an immutable copy costs little: a copy shares the shards that nobody has written to
// since.
type table[K comparable, V any] struct {
	seed  maphash.Seed
	maps  [shards]map[K]V
	owned [shards]bool // shared with no copy
	size  int
}

func newTable[K comparable, V any]() *table[K, V] { return &table[K, V]{seed: maphash.MakeSeed()} }

func (t *table[K, V]) shard(k K) int { return int(maphash.Comparable(t.seed, k) % shards) }

func (t *table[K, V]) get(k K) (V, bool) {
	v, ok := t.maps[t.shard(k)][k]
	return v, ok
}

func (t *table[K, V]) set(k K, v V) {
	m := t.writable(t.shard(k))
	before := len(m)
	m[k] = v
	t.size += len(m) - before
}

func (t *table[K, V]) delete(k K) {
	i := t.shard(k)
	if _, ok := t.maps[i][k]; !ok {
		return
	}
	delete(t.writable(i), k)
	t.size--
}

func (t *table[K, V]) writable(i int) map[K]V {
	switch {
	case t.maps[i] == nil:
		t.maps[i] = map[K]V{}
	case !t.owned[i]:
		t.maps[i] = maps.Clone(t.maps[i])
	}
	t.owned[i] = true
	return t.maps[i]
}

// frozen is t as it is now, for readers only; later writes to t do not reach it.
func (t *table[K, V]) frozen() *table[K, V] {
	t.owned = [shards]bool{}
	f := *t
	return &f
}

func (t *table[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for _, m := range t.maps {
			for k, v := range m {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}
