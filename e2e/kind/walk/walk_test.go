package walk

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestParseAttempt(t *testing.T) {
	const okBody = `{"Pod":"web","Client":"10.0.0.1:5","Server":"10.0.0.2:80","Host":"h","Path":"/m"}` + "\n"
	tests := []struct {
		name, block, want, local string
	}{
		{"answered", "< HTTP/1.1 200 OK\n" + okBody + "\n" + mark + " 0 10.0.0.1 40000 0.0123 200\n", "ok", "10.0.0.1:40000"},
		{"refused", "* connect to 10.0.0.2 port 80 failed: Connection refused\n\n" + mark + " 7  0 0.001 000\n", "refused", "invalid AddrPort"},
		{"reset", "* Recv failure: Connection reset by peer\n\n" + mark + " 56 10.0.0.1 40000 0.001 000\n", "reset", "10.0.0.1:40000"},
		{"closed", "* Empty reply from server\n\n" + mark + " 52 10.0.0.1 40000 0.001 000\n", "closed", "10.0.0.1:40000"},
		{"hung", "* Connection timed out\n\n" + mark + " 28  0 4.001 000\n", "timeout", "invalid AddrPort"},
		{"not the application", "< HTTP/1.1 200 OK\nhello\n\n" + mark + " 0 10.0.0.1 40000 0.01 200\n", "curl ended with 0", "10.0.0.1:40000"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			all, err := parseAttempts("noise\n"+mark+"\n"+tt.block, 1)
			if err != nil {
				t.Fatal(err)
			}
			if a := all[0]; a.String() != tt.want || a.local.String() != tt.local {
				t.Errorf("got %q from %s, want %q from %s", a, a.local, tt.want, tt.local)
			}
		})
	}
	if _, err := parseAttempts("nothing", 1); err == nil {
		t.Error("a missing report is no error")
	}
}

func TestCheckTellsRefusalsFromTimeouts(t *testing.T) {
	tests := []struct {
		a       attempt
		outcome string
		good    bool
	}{
		{attempt{ok: true}, wantOK, true},
		{attempt{ok: true}, wantRefused, false},
		{attempt{reason: "refused"}, wantRefused, true},
		{attempt{reason: "refused", took: 3 * time.Second}, wantRefused, false},
		{attempt{reason: "reset"}, wantRefused, false},
		{attempt{reason: "reset"}, wantStopped, true},
		{attempt{reason: "timeout"}, wantStopped, false},
	}
	for _, tt := range tests {
		if err := tt.a.check(tt.outcome); (err == nil) != tt.good {
			t.Errorf("%+v as %s: %v", tt.a, tt.outcome, err)
		}
	}
}

func TestJudgeLoops(t *testing.T) {
	now := func(load, attack counts) tally {
		return tally{loadNear: load, loadFar: load, attackNear: attack, attackFar: attack}
	}
	before := now(counts{Tries: 10, Succeeded: 10}, counts{Tries: 10, Failed: 10})
	tests := []struct {
		name         string
		load, attack counts
		lossless, ok bool
	}{
		{"all well", counts{Tries: 30, Succeeded: 30}, counts{Tries: 30, Failed: 30}, true, true},
		{"plaintext", counts{Tries: 30, Succeeded: 30}, counts{Tries: 30, Failed: 29, Succeeded: 1}, false, false},
		{"a loss", counts{Tries: 30, Succeeded: 29, Failed: 1}, counts{Tries: 30, Failed: 30}, true, false},
		{"a loss that may be", counts{Tries: 30, Succeeded: 29, Failed: 1}, counts{Tries: 30, Failed: 30}, false, true},
		{"nobody tried", counts{Tries: 11, Succeeded: 11}, counts{Tries: 30, Failed: 30}, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := judgeLoops(before, now(tt.load, tt.attack), tt.lossless); (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestRowsHaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range Rows(nil) {
		if seen[name] {
			t.Errorf("two rows are %q", name)
		}
		seen[name] = true
	}
	if got := Rows(regexp.MustCompile("^uninstall: sockets$")); len(got) != 1 {
		t.Errorf("got %v", got)
	}
}

func TestTheCountsStandAlone(t *testing.T) {
	r := &Result{}
	g := group{name: "g"}
	r.add(g, row{name: "a", where: anywhere}, time.Second, "ok", nil)
	r.skip(g, row{name: "b", where: anywhere}, "skipped: needs node access")
	var b strings.Builder
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(strings.TrimSpace(b.String()), "\n"); lines[len(lines)-1] != "1 passed, 0 failed, 1 skipped" {
		t.Errorf("the last line is %q", lines[len(lines)-1])
	}
	if !r.OK() {
		t.Error("it is not OK")
	}
}
