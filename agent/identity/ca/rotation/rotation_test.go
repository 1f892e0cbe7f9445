package rotation

import (
	"strings"
	"testing"
	"time"
)

const (
	day  = 24 * time.Hour
	year = 365 * day
)

func policy() Policy {
	return Policy{Root: 10 * year, Intermediate: 30 * day, SVID: day, Overlap: time.Hour}
}

// epoch is when everything in these tests begins.
func epoch() time.Time { return time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC) }

func at(d time.Duration) time.Time { return epoch().Add(d) }

// fresh is a CA that was just made.
func fresh() State {
	return State{Phase: Stable, Agrees: true, Since: epoch(),
		Root: Life{epoch(), at(10 * year)}, Intermediate: Life{epoch(), at(30 * day)}}
}

func TestNext(t *testing.T) {
	tests := []struct {
		name  string
		alter func(*State)
		now   time.Duration
		want  Action
		at    time.Duration
	}{
		{"just made", func(*State) {}, 0, Sign, 15 * day},
		{"intermediate at half its life", func(*State) {}, 15 * day, Sign, 15 * day},
		{"nothing signs yet", func(s *State) { s.Agrees = false }, 5, Sign, 5},
		{"intermediate asked for", func(s *State) { s.IntermediateAsked = at(time.Minute) }, time.Hour, Sign, time.Minute},
		{"intermediate asked for before it was made", func(s *State) { s.IntermediateAsked = at(-time.Minute) }, time.Hour, Sign, 15 * day},
		{"intermediate asked for in the very second", func(s *State) { s.IntermediateAsked = epoch() }, time.Hour, Sign, 15 * day},
		{"root asked for", func(s *State) { s.RootAsked = at(time.Minute) }, time.Hour, Begin, time.Minute},
		{"root asked for later", func(s *State) { s.RootAsked = at(2 * time.Hour) }, time.Hour, Begin, 2 * time.Hour},
		{"root asked for before it was made", func(s *State) { s.RootAsked = at(-time.Minute) }, time.Hour, Sign, 15 * day},
		{"root at 80 %", func(s *State) { s.Intermediate = Life{at(8*year - day), at(8*year + 29*day)} }, 8 * year, Begin, 8 * year},
		{"root of a shorter life than the policy's", func(s *State) {
			s.Root.Ends, s.Intermediate.Ends = at(60*time.Hour), at(60*time.Hour)
		}, 0, Begin, 10 * time.Hour},
		{"intermediate that ends with its root", func(s *State) {
			s.Root.Ends, s.Intermediate.Ends = at(20*day), at(20*day)
		}, 0, Begin, 16 * day},
		{"announced just now", func(s *State) { s.Phase = Announce }, 0, Switch, time.Hour},
		{"announced, half of the overlap", func(s *State) { s.Phase, s.Waited = Announce, 30*time.Minute }, 30 * time.Minute, Switch, time.Hour},
		{"announced, overlap over", func(s *State) { s.Phase, s.Waited = Announce, time.Hour }, time.Hour, Switch, time.Hour},
		{"announced, clock jumped a day ahead", func(s *State) { s.Phase, s.Waited = Announce, time.Minute }, day, Switch, day + 59*time.Minute},
		{"announced, clock jumped back a day", func(s *State) { s.Phase, s.Waited = Announce, time.Hour }, -day, Switch, time.Hour},
		{"announced, and another asked for", func(s *State) { s.Phase, s.RootAsked = Announce, at(time.Minute) }, time.Minute, Switch, time.Hour + time.Minute},
		{"announced, intermediate due meanwhile", func(s *State) { s.Phase, s.Since = Announce, at(15*day-time.Minute) }, 15 * day, Sign, 15 * day},
		{"switched", func(s *State) { s.Phase = Retire }, 0, Drop, 25 * time.Hour},
		{"switched, a life of an SVID ago", func(s *State) { s.Phase, s.Waited = Retire, day }, day, Drop, 25 * time.Hour},
		{"switched, all over", func(s *State) { s.Phase, s.Waited = Retire, 25*time.Hour }, 25 * time.Hour, Drop, 25 * time.Hour},
		{"switched, clock jumped ahead", func(s *State) { s.Phase, s.Waited = Retire, time.Hour }, 10 * day, Drop, 11 * day},
		{"switched, clock jumped back", func(s *State) { s.Phase, s.Waited = Retire, 25*time.Hour }, -year, Drop, 25 * time.Hour},
		{"switched, what signs is still the old", func(s *State) { s.Phase, s.Agrees = Retire, false }, 0, Sign, 0},
		{"root expired", func(*State) {}, 10 * year, Begin, 10 * year},
		{"root expired, and what signs does not agree", func(s *State) { s.Agrees = false }, 10 * year, Begin, 10 * year},
		{"root expired while the next was announced", func(s *State) { s.Phase, s.Agrees = Announce, false }, 10 * year, Switch, 10 * year},
		{"root expired before the one of old was dropped", func(s *State) { s.Phase = Retire }, 10 * year, Drop, 10 * year},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := fresh()
			test.alter(&s)
			got := policy().Next(s, at(test.now))
			if got.Action != test.want || !got.At.Equal(at(test.at)) {
				t.Fatalf("%s in %s (%s), want %s in %s", got.Action, got.At.Sub(epoch()), got.Why, test.want, test.at)
			}
		})
	}
}

func TestAJumpingClockNeverEndsAPhaseEarly(t *testing.T) {
	for _, phase := range []Phase{Announce, Retire} {
		for _, jump := range []time.Duration{-10 * year, -day, 0, time.Hour, day, 9 * year} {
			s := fresh()
			s.Phase, s.Waited = phase, policy().Wait(phase)-time.Second
			now := at(policy().Wait(phase) - time.Second + jump)
			if step := policy().root(s, now); step.Due(now) {
				t.Errorf("%s, clock %s off: %s is due", phase, jump, step.Action)
			}
		}
	}
}

func TestLivesThatDoNotGoTogether(t *testing.T) {
	tests := []struct {
		name  string
		alter func(*Policy)
		want  string
	}{
		{"default", func(*Policy) {}, ""},
		{"seconds", func(p *Policy) { *p = Policy{40 * time.Second, 10 * time.Second, 2 * time.Second, 2 * time.Second} }, ""},
		{"no overlap", func(p *Policy) { p.Overlap = 0 }, "must be positive"},
		{"intermediate too short", func(p *Policy) { p.Intermediate = 47 * time.Hour }, "less than twice that of SVIDs"},
		{"root too short for its intermediate", func(p *Policy) { p.Root = 59 * day }, "less than twice that of the intermediate"},
		{"root too short for a rotation", func(p *Policy) { p.Root, p.Overlap = 60*day, 6*day }, "ten times"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := policy()
			test.alter(&p)
			err := p.Check()
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Fatalf("error %v, want %q", err, test.want)
			}
		})
	}
}
