package identity

import (
	"container/heap"
	"time"
)

const notWaiting = -1

// schedule is a heap of entries, the one that is due first on top.
type schedule []*entry

// Len implements heap.Interface.
func (s schedule) Len() int { return len(s) }

// Less implements heap.Interface.
func (s schedule) Less(i, j int) bool { return s[i].at.Before(s[j].at) }

// Swap implements heap.Interface.
func (s schedule) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].index, s[j].index = i, j
}

// Push implements heap.Interface.
func (s *schedule) Push(x any) {
	e := x.(*entry)
	e.index = len(*s)
	*s = append(*s, e)
}

// Pop implements heap.Interface.
func (s *schedule) Pop() any {
	last := len(*s) - 1
	e := (*s)[last]
	(*s)[last] = nil
	*s = (*s)[:last]
	e.index = notWaiting
	return e
}

// queue is first in, first out.
type queue struct{ all []*entry }

func (q *queue) put(e *entry) {
	e.queued = true
	q.all = append(q.all, e)
}

func (q *queue) take() *entry {
	e := q.all[0]
	q.all[0] = nil
	q.all = q.all[1:]
	e.queued = false
	return e
}

// run starts what is due until the Keeper ends.
func (k *Keeper) run() {
	k.waitToBegin()
	timer := time.NewTimer(0)
	defer timer.Stop()
	last := time.Now()
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-k.poke:
		case <-timer.C:
		}
		now := time.Now()
		if setBack(last, now) {
			k.retryFailed()
		}
		last = now
		timer.Reset(k.startDue(now.Round(0)))
	}
}

// setBack reports whether the clock on the wall was set back between two readings, which the monotonic one tells.
func setBack(last, now time.Time) bool {
	return now.Sub(last)-now.Round(0).Sub(last.Round(0)) > time.Second
}

// retryFailed tries again at once what failed: when it was to be tried again may be hours away by now.
func (k *Keeper) retryFailed() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.kept {
		if e.err != nil && e.stream == nil {
			k.hasten(e)
		}
	}
}

func (k *Keeper) waitToBegin() {
	timer := time.NewTimer(k.holdOff)
	defer timer.Stop()
	select {
	case <-timer.C:
		k.begin()
	case <-k.begun:
	case <-k.ctx.Done():
	}
}

// reconsider schedules an entry anew after its users or its next time have changed. One without users is due when its
// grace is over, and never for anything else. The caller holds the lock.
func (k *Keeper) reconsider(e *entry) {
	switch {
	case e.stream != nil:
		e.stream.wake()
		return
	case e.running || e.queued:
		return // it is looked at again when that is over
	}
	e.at = e.next
	if len(e.users) == 0 {
		e.at = e.idle.Add(k.grace)
	}
	if e.index == notWaiting {
		heap.Push(&k.due, e)
	} else {
		heap.Fix(&k.due, e.index)
	}
	k.wake()
}

// hasten has another SVID fetched at once. The caller holds the lock.
func (k *Keeper) hasten(e *entry) {
	e.next = time.Now().Round(0)
	e.hurry = e.running
	k.reconsider(e)
}

// startDue starts what is due, as far as there is room, and returns when to look again.
func (k *Keeper) startDue(now time.Time) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.due) > 0 && !k.due[0].at.After(now) {
		switch e := heap.Pop(&k.due).(*entry); {
		case len(e.users) == 0:
			k.drop(e)
		case e.chain == nil:
			k.urgent.put(e)
		default:
			k.routine.put(e)
		}
	}
	for k.issuing < maxIssuing && len(k.urgent.all) > 0 {
		k.start(k.urgent.take(), false)
	}
	for k.issuing < maxIssuing && k.renewing < maxRenewing && len(k.routine.all) > 0 {
		k.start(k.routine.take(), true)
	}
	if len(k.due) == 0 {
		return maxNap
	}
	return min(k.due[0].at.Sub(now), maxNap)
}

// start makes one attempt. The caller holds the lock.
func (k *Keeper) start(e *entry, renewal bool) {
	w, used := e.user()
	if !used {
		k.reconsider(e)
		return
	}
	e.running = true
	k.issuing++
	if renewal {
		k.renewing++
	}
	k.tasks.Go(func() {
		if err := k.issue(e, w); err != nil && k.ctx.Err() == nil {
			k.failed(e, err)
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		k.issuing--
		if renewal {
			k.renewing--
		}
		e.running = false
		if e.hurry {
			e.hurry, e.next = false, time.Now().Round(0)
		}
		k.reconsider(e)
	})
}

// drop gives up an identity. The caller holds the lock.
func (k *Keeper) drop(e *entry) {
	e.forget()
	delete(k.kept, e.id)
	k.tasks.Go(func() { k.onDrop(e.id) })
}

func (k *Keeper) wake() {
	select {
	case k.poke <- struct{}{}:
	default:
	}
}
