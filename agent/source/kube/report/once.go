package report

import (
	"fmt"
	"log/slog"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// onceLog says once that something does not work, until it worked again. Whatever fails here fails for many
// objects in the same way.
type onceLog struct {
	log *slog.Logger

	mu   sync.Mutex
	said map[string]string
}

// failed logs why an operation, named by its verb and resource, failed. A missing permission is said by name.
func (o *onceLog) failed(operation, message string, err error, args ...any) {
	kind := "error"
	switch {
	case apierrors.IsForbidden(err):
		kind = "forbidden"
		err = fmt.Errorf("the ServiceAccount lacks the permission to %s: %w", operation, err)
	case apierrors.IsUnauthorized(err):
		kind = "unauthorized"
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.said[operation] == kind {
		return
	}
	o.remember(operation, kind)
	o.log.Error(message, append(args, "error", err)...)
}

// worked makes the next failure of the operation worth a line again.
func (o *onceLog) worked(operation string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if kind, said := o.said[operation]; said {
		delete(o.said, operation)
		o.log.Info("works again", "operation", operation, "was", kind)
	}
}

func (o *onceLog) warn(key, message string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.said[key] == "" {
		o.remember(key, "warn")
		o.log.Warn(message, args...)
	}
}

func (o *onceLog) remember(key, kind string) {
	if o.said == nil {
		o.said = map[string]string{}
	}
	o.said[key] = kind
}
