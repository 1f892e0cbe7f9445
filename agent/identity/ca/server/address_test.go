package server

import (
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/agent/identity/ca/wire"
)

func TestTokenFromAnotherAddressIsRefusedIfThatIsWanted(t *testing.T) {
	for _, require := range []bool{false, true} {
		s := start(t, callers(), placed(), func(o *Options) { o.RequireAddress = require })
		if _, err := s.call(t, "agent of a", wire.Request{CSR: csr(t, "")}); err != nil {
			t.Errorf("from its own address: %v", err)
		}
		_, err := s.call(t, "agent of b", wire.Request{CSR: csr(t, "")})
		switch {
		case require:
			refusedWith(t, err, "code = PermissionDenied", s.log, "came from 127.0.0.1, which is not among its addresses [127.0.0.2]")
			if !strings.Contains(s.log.String(), "class=address") {
				t.Errorf("log: %s", s.log)
			}
		case err != nil:
			t.Errorf("from another address: %v", err)
		case !strings.Contains(s.log.String(), "address_is_pods=no"):
			t.Errorf("the log does not tell: %s", s.log)
		}
	}
}
