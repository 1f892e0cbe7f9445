package ca

import "errors"

// Caller is who asks for a certificate, as its token proves.
type Caller struct {
	Namespace, ServiceAccount string
	Pod, PodUID               string
	Node                      string // that the pod runs on
}

// Account returns the caller's service account as namespace/name.
func (c Caller) Account() string { return c.Namespace + "/" + c.ServiceAccount }

// ErrUnavailable marks an answer that could not be had just now: nothing was refused, and asking again helps.
var ErrUnavailable = errors.New("cannot be answered now")
