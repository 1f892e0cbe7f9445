package observe

// maxTold bounds the connections that are known to be open. Of those that opened before the end alone tells: if they
// are older than so many others they are counted twice.
const maxTold = 1 << 15

// told knows which connections were counted when they opened. Short ones are told of at their end alone.
type told struct {
	open  map[flowKey]struct{}
	order []flowKey // oldest first; some are over
}

type flowKey struct {
	number  uint64
	inbound bool
	source  End
}

// fresh reports whether nothing was told of the event's connection before.
func (t *told) fresh(e *Event) bool {
	if e.Number == 0 {
		return true
	}
	k := flowKey{e.Number, e.Inbound, End{Address: e.Source.Address, Port: e.Source.Port}}
	_, before := t.open[k]
	switch {
	case !e.Open:
		delete(t.open, k)
	case !before:
		t.open[k] = struct{}{}
		t.order = append(t.order, k)
		t.forget()
	}
	return !before
}

func (t *told) forget() {
	if len(t.order) < 2*maxTold {
		return
	}
	kept := t.order[:0]
	for i, k := range t.order {
		switch _, open := t.open[k]; {
		case !open:
		case len(t.order)-i > maxTold:
			delete(t.open, k)
		default:
			kept = append(kept, k)
		}
	}
	t.order = kept
}
