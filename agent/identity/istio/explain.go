package istio

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// istiodImpersonation is all that istiod says about a request for somebody else's certificate that it refuses.
const istiodImpersonation = "impersonation"

// explain adds to the CA's error what a platform engineer can do about it. CAs say little on purpose: why is in
// their own log.
func (c *Client) explain(err error) error {
	var hint string
	switch s := status.Convert(err); s.Code() {
	case codes.Unauthenticated:
		if strings.Contains(s.Message(), istiodImpersonation) {
			hint = c.impersonation()
			break
		}
		hint = fmt.Sprintf("is the token in %s for the CA's audience, not expired, and of a cluster that the CA knows as %q?",
			c.TokenFile, c.ClusterID)
	case codes.PermissionDenied:
		hint = "is the agent's service account one that may ask (istiod: in CA_TRUSTED_NODE_ACCOUNTS), is the token for the CA's audience, and does a pod with this identity run on this node?"
	case codes.Unimplemented:
		hint = "is this the address of a CA? istiod may run without one (ENABLE_CA_SERVER)"
	case codes.DeadlineExceeded:
		hint = fmt.Sprintf("no answer within %s", c.Timeout)
	default:
		return err
	}
	return fmt.Errorf("%w (%s)", err, hint)
}

func (c *Client) impersonation() string {
	const account = "is the agent's service account in istiod's CA_TRUSTED_NODE_ACCOUNTS, and does a pod with this identity run on this node?"
	if c.ClusterID == "" {
		return "istiod wants a cluster id and none is set; " + account
	}
	return fmt.Sprintf("%s is %q istiod's CLUSTER_ID? istiod's log says what it is", account, c.ClusterID)
}

// explainAnswer does the same for an answer that is not taken.
func (c *Client) explainAnswer(err error, leaf *x509.Certificate) error {
	var stranger x509.UnknownAuthorityError
	switch {
	case errors.As(err, &stranger):
		return fmt.Errorf("%w (it leads to none of the %d roots known; if the CA's root was replaced just now, they follow by themselves, else look at %s)",
			err, len(c.roots.current()), c.RootsFile)
	case !time.Now().Before(leaf.NotAfter):
		return fmt.Errorf("%w, though it was made just now: are the clocks right?", err)
	}
	return err
}
