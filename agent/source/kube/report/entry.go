package report

import (
	"context"
	"errors"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/types"

	"github.com/culvert-mesh/culvert/agent/source"
)

// entry is what is known and wanted of one pod's annotation. The Reporter's lock guards it.
type entry struct {
	namespace, name string
	want            bool
	have            source.Redirection
	wrote           time.Time // when have was written here, and not observed
	doubt           bool      // have was written here, but something else was observed since
	queued          bool      // its turn will come
	busy            bool      // a writer has it
	idle            chan struct{}
	told            string // what the last Event said
	limit           *rate.Limiter
}

func (e *entry) wanted() source.Redirection {
	if e.want {
		return source.RedirectionEnabled
	}
	return source.RedirectionAbsent
}

// done reports whether there is nothing to write.
func (e *entry) done() bool { return e.have == e.wanted() && !e.doubt }

// observe takes down what the agent last saw of the annotation. Shortly after a write, an observation that differs is
// most likely the older of the two; if it is not, somebody else altered the annotation. Both are settled by writing
// it once more when the observations must have caught up.
func (e *entry) observe(seen source.Redirection, now time.Time) {
	switch {
	case seen == source.RedirectionUnknown || e.busy:
	case now.Sub(e.wrote) < settle:
		e.doubt = seen != e.have
	default:
		e.have, e.doubt = seen, false
	}
}

// next writes one pod's annotation; false ends the writer.
func (r *Reporter) next(ctx context.Context) bool {
	uid, ended := r.queue.Get()
	if ended {
		return false
	}
	defer r.queue.Done(uid)
	namespace, name, want, ok := r.begin(uid)
	if !ok {
		return true
	}
	err := func() error {
		ctx, stop := context.WithTimeout(ctx, requestTimeout)
		defer stop()
		return annotate(ctx, r.client, namespace, name, uid, want)
	}()
	r.end(uid, want, err)
	return true
}

func (r *Reporter) begin(uid types.UID) (namespace, name string, want, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.pods[uid]
	if e == nil {
		return "", "", false, false
	}
	e.queued = false
	if e.done() || r.draining {
		return "", "", false, false
	}
	e.busy, e.idle = true, make(chan struct{})
	return e.namespace, e.name, e.want, true
}

// end takes down what came of a write, and sees to it that it is done again where it has to be.
func (r *Reporter) end(uid types.UID, wrote bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.pods[uid]
	if e == nil {
		return
	}
	e.busy = false
	close(e.idle)
	switch {
	case errors.Is(err, errOtherPod):
		// Deleted, or another pod has the name. Nothing of it is left to say.
		delete(r.pods, uid)
		r.queue.Forget(uid)
	case err != nil:
		r.failures.Add(1)
		r.once.failed(verbPatchStatus, "annotation not written", err, "workload", e.namespace+"/"+e.name)
		e.queued = true
		r.queue.AddRateLimited(uid)
	default:
		r.written.Add(1)
		r.once.worked(verbPatchStatus)
		r.queue.Forget(uid)
		e.have, e.wrote, e.doubt = source.RedirectionAbsent, time.Now(), false
		if wrote {
			e.have = source.RedirectionEnabled
		}
		if !e.done() {
			r.schedule(uid, e)
		}
	}
}
