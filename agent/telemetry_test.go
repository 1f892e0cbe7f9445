package agent

import (
	"errors"
	"maps"
	"testing"

	"github.com/culvert-mesh/culvert/agent/source"
)

func TestAnObjectWithSeveralProblemsCountsOnce(t *testing.T) {
	bad := errors.New("bad")
	got := rejected([]source.Problem{
		{Object: "PeerAuthentication n/a", Err: bad}, {Object: "PeerAuthentication n/a", Err: bad},
		{Object: "PeerAuthentication n/b", Err: bad}, {Object: "DestinationRule n/a", Err: bad},
	})
	if !maps.Equal(got, map[string]int{"PeerAuthentication": 2, "DestinationRule": 1}) {
		t.Fatal(got)
	}
}
