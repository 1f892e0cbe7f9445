package observe

import "time"

const (
	// Of one workload so many connections that came to nothing are remembered at once, and so many a second: whoever can
	// send a SYN can cause them, and must not push what else was seen out of memory.
	floodBurst = 100
	floodRate  = 5
	maxFloods  = 4096
)

// floods bounds what is remembered of refused and failed connections, by the workload that they were to reach and by how they ended.
type floods map[string]*flood

type flood struct {
	room       float64
	at         time.Time
	suppressed uint64
}

// admits reports whether the event is to be remembered; then it stands for those before that were not, too.
func (f floods) admits(e *Event) bool {
	if e.Carried != Refused && e.Carried != Failed {
		return true
	}
	key := string(e.Carried) + " " + e.Destination.name()
	of := f[key]
	if of == nil {
		if len(f) >= maxFloods {
			f.calm(e.Time)
		}
		if len(f) >= maxFloods {
			return false
		}
		of = &flood{room: floodBurst, at: e.Time}
		f[key] = of
	}
	of.fill(e.Time)
	if of.room < 1 {
		of.suppressed += max(e.Count, 1)
		return false
	}
	of.room--
	if of.suppressed > 0 {
		e.Count = max(e.Count, 1) + of.suppressed
		of.suppressed = 0
	}
	return true
}

func (f *flood) fill(now time.Time) {
	f.room = min(floodBurst, f.room+max(now.Sub(f.at), 0).Seconds()*floodRate)
	f.at = now
}

// calm drops those that are over.
func (f floods) calm(now time.Time) {
	for key, of := range f {
		if of.fill(now); of.room >= floodBurst {
			delete(f, key)
		}
	}
}
