package identity

import (
	"bytes"
	"crypto/x509"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// entry is an identity in use. Whoever touches it holds the Keeper's lock.
type entry struct {
	id    spiffeid.ID
	users []user
	idle  time.Time // since when there are none

	// Certificates are kept as they came: parsed they take ten times as much.
	chain     [][]byte // in force, leaf first; nil: none yet
	expires   time.Time
	key       []byte // PKCS #8; nil while a tunnel alone has it
	federates []spiffeid.TrustDomain
	obtained  time.Time
	err       error         // of the last attempt
	ready     chan struct{} // if anybody waits for the first SVID

	next    time.Time     // of a renewal, or of the next attempt
	at      time.Time     // its place in the schedule
	backoff time.Duration // of the last failure; 0 after a success
	index   int           // in the schedule
	queued  bool          // due, and waiting for room
	running bool          // an attempt is under way
	hurry   bool          // another at once after that one

	stream *stream // of a Watcher; nil: there is none
}

// user is a workload and how often it uses the identity.
type user struct {
	Workload
	times int
}

func (e *entry) use(w Workload) {
	for i := range e.users {
		if e.users[i].Workload == w {
			e.users[i].times++
			return
		}
	}
	e.users = append(e.users, user{w, 1})
}

// leave reports whether w is no user any more.
func (e *entry) leave(w Workload) bool {
	for i := range e.users {
		if e.users[i].Workload != w {
			continue
		}
		if e.users[i].times--; e.users[i].times > 0 {
			return false
		}
		e.users = slices.Delete(e.users, i, i+1)
		return true
	}
	return false
}

// user returns one of them.
func (e *entry) user() (Workload, bool) {
	if len(e.users) == 0 {
		return Workload{ID: e.id}, false
	}
	return e.users[0].Workload, true
}

func (e *entry) uses(w Workload) bool {
	return slices.ContainsFunc(e.users, func(u user) bool { return u.Workload == w })
}

// put makes an SVID the one in force. The key is the entry's from here on.
func (e *entry) put(chain [][]byte, expires time.Time, key []byte, federates []spiffeid.TrustDomain) {
	clear(e.key)
	e.chain, e.expires, e.key, e.federates = chain, expires, key, federates
	e.obtained, e.err, e.backoff = time.Now().Round(0), nil, 0
	if e.ready != nil {
		close(e.ready)
		e.ready = nil
	}
}

// forget gives up the SVID.
func (e *entry) forget() {
	clear(e.key)
	e.chain, e.key = nil, nil
}

func (e *entry) expired(now time.Time) bool { return e.chain != nil && !now.Before(e.expires) }

// certificates are those above the leaves, of which all chains share the same few.
type certificates [][]byte

// maxShared is more than the intermediates that are in use at one time.
const maxShared = 16

// shared returns the chain in DER, with what is above the leaf shared among all.
func (c *certificates) shared(chain []*x509.Certificate) [][]byte {
	ders := [][]byte{chain[0].Raw}
	for _, cert := range chain[1:] {
		i := slices.IndexFunc(*c, func(der []byte) bool { return bytes.Equal(der, cert.Raw) })
		if i < 0 {
			*c = append(*c, cert.Raw)
			i = len(*c) - 1
		}
		ders = append(ders, (*c)[i])
	}
	if len(*c) > maxShared {
		*c = nil
	}
	return ders
}
