package server

import (
	"log/slog"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestOptionsThatCannotBe(t *testing.T) {
	good := Options{Namespace: "culvert-system", TrustDomain: domain(), Logger: slog.New(slog.DiscardHandler)}
	if _, err := good.complete(); err != nil {
		t.Fatal(err)
	}
	for _, alter := range []func(*Options){
		func(o *Options) { o.Namespace = "" },
		func(o *Options) { o.Logger = nil },
		func(o *Options) { o.TrustDomain = spiffeid.TrustDomain{} },
		func(o *Options) { o.Accounts = []string{"culvert-agent"} },
		func(o *Options) { o.Accounts = []string{"a/b/c"} },
		func(o *Options) { o.SVIDLife = time.Millisecond },
		func(o *Options) { o.NodeRate = -1 },
	} {
		o := good
		alter(&o)
		if _, err := o.complete(); err == nil {
			t.Errorf("accepted: %+v", o)
		}
	}
}
