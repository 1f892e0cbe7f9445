// Package rotation decides when a CA's root and intermediate are replaced. It knows no keys and no place where they are
// kept: all it does is a function of what there is and of the time.
//
// The intermediate is replaced at once, because its certificate travels with every leaf. The root is replaced in phases,
// because those who verify have to learn it:
//
//	stable ──begin──▶ announce ──switch──▶ retire ──drop──▶ stable
//
//	phase      signs below   bundle      ends when
//	stable     root          root        the root has lived 80 % of its life, or somebody asks
//	announce   root          root,next   all had an overlap's time to learn next
//	retire     next          next,root   the last leaf below the old root has expired, and an overlap more has passed
package rotation

import (
	"fmt"
	"time"
)

// Phase is where a rotation of the root is.
type Phase string

// The phases.
const (
	Stable   Phase = "stable"
	Announce Phase = "announce"
	Retire   Phase = "retire"
)

// Policy is how long things live.
type Policy struct {
	Root         time.Duration
	Intermediate time.Duration
	SVID         time.Duration // the longest life of a leaf
	Overlap      time.Duration // within it, whoever verifies learns a new root
}

// Check finds lives that do not go together.
func (p Policy) Check() error {
	switch {
	case p.SVID <= 0 || p.Overlap <= 0:
		return fmt.Errorf("life of SVIDs %s and overlap of roots %s must be positive", p.SVID, p.Overlap)
	case p.Intermediate < 2*p.SVID:
		// It is replaced at half its life, and up to then no leaf is to be cut short.
		return fmt.Errorf("life of the intermediate %s is less than twice that of SVIDs, %s", p.Intermediate, p.SVID)
	case p.Root < 2*p.Intermediate:
		return fmt.Errorf("life of the root %s is less than twice that of the intermediate, %s", p.Root, p.Intermediate)
	case p.Root < 10*(p.SVID+p.Overlap):
		// A rotation begins when a fifth of it is left.
		return fmt.Errorf("life of the root %s is less than ten times that of SVIDs and the overlap together, %s", p.Root, p.SVID+p.Overlap)
	}
	return nil
}

// Life is that of a certificate.
type Life struct{ Made, Ends time.Time }

// State is what there is.
type State struct {
	Phase              Phase
	Root, Intermediate Life
	// Agrees is whether what signs is what the phase wants: an intermediate below the root, and the bundle.
	Agrees bool
	// Since is when the bundle became what it is, and Waited how much time has verifiably passed since: a clock that
	// jumps changes the former alone.
	Since  time.Time
	Waited time.Duration
	// What was made before these times is to be replaced; zero if nobody asked.
	RootAsked, IntermediateAsked time.Time
}

// Action is a change to be made.
type Action string

// The actions.
const (
	Sign   Action = "sign"   // make what signs what the phase wants, or renew it
	Begin  Action = "begin"  // make the next root: Stable to Announce
	Switch Action = "switch" // sign below the next root: Announce to Retire
	Drop   Action = "drop"   // forget the old root: Retire to Stable
)

// Step is what is to be done next, and when at the earliest.
type Step struct {
	Action Action    `json:"action"`
	At     time.Time `json:"at"`
	Why    string    `json:"why"`
}

// Due reports whether it is time.
func (s Step) Due(now time.Time) bool { return !s.At.After(now) }

// Next is the next step from s.
func (p Policy) Next(s State, now time.Time) Step {
	if !now.Before(s.Root.Ends) {
		return expired(s.Phase, now)
	}
	if !s.Agrees {
		return Step{Sign, now, "what signs is not yet what the phase wants"}
	}
	root := p.root(s, now)
	if renewal, ok := p.intermediate(s); ok && renewal.At.Before(root.At) {
		return renewal
	}
	return root
}

// expired is the way to the next root when the present one has expired, for instance while the cluster was off. Nothing
// below it verifies, so there is nothing to wait for.
func expired(phase Phase, now time.Time) Step {
	const why = "the root has expired"
	switch phase {
	case Announce:
		return Step{Switch, now, why}
	case Retire:
		return Step{Drop, now, why}
	}
	return Step{Begin, now, why}
}

// intermediate is its renewal. One that lives as long as its root cannot be bettered.
func (p Policy) intermediate(s State) (Step, bool) {
	half := Step{Sign, s.Intermediate.Made.Add(s.Intermediate.Ends.Sub(s.Intermediate.Made) / 2), "the intermediate is at half its life"}
	asked := s.IntermediateAsked.After(s.Intermediate.Made)
	switch {
	case asked && s.IntermediateAsked.Before(half.At):
		return Step{Sign, s.IntermediateAsked, "a new intermediate was asked for"}, true
	case !asked && !s.Intermediate.Ends.Before(s.Root.Ends):
		return Step{}, false
	}
	return half, true
}

func (p Policy) root(s State, now time.Time) Step {
	switch s.Phase {
	case Announce:
		return Step{Switch, after(s, now, p.Overlap), "the new root was announced for long enough"}
	case Retire:
		return Step{Drop, after(s, now, p.Retirement()), "the last certificate below the old root has expired"}
	}
	begin := Step{Begin, s.Root.Made.Add(s.Root.Ends.Sub(s.Root.Made) / 5 * 4), "the root has lived 80 % of its life"}
	if latest := s.Root.Ends.Add(-2 * (p.Overlap + p.SVID)); latest.Before(begin.At) {
		begin = Step{Begin, latest, "the rest of the root's life is what a rotation takes"}
	}
	if s.RootAsked.After(s.Root.Made) && s.RootAsked.Before(begin.At) {
		begin = Step{Begin, s.RootAsked, "a new root was asked for"}
	}
	return begin
}

// Retirement is how long an old root stays in the bundle. The overlap covers a replica that heard late of the switch.
func (p Policy) Retirement() time.Duration { return p.SVID + p.Overlap }

// Wait is how long a phase lasts at least; zero if it is none that waits.
func (p Policy) Wait(phase Phase) time.Duration {
	switch phase {
	case Announce:
		return p.Overlap
	case Retire:
		return p.Retirement()
	}
	return 0
}

// after is when d has passed by the clock and verifiably.
func after(s State, now time.Time, d time.Duration) time.Time {
	byClock, verifiably := s.Since.Add(d), now.Add(d-s.Waited)
	if byClock.After(verifiably) {
		return byClock
	}
	return verifiably
}
