// Package cni is what the CNI plugin and the agent of a node say to each other: one request and one answer over a
// unix SOCK_SEQPACKET connection, JSON both ways, with the pod's network namespace as an open descriptor beside
// the request.
//
// The plugin runs in the container runtime's mount namespace and the agent in its pod's, so a path means
// something else to each of them; a descriptor means the same to both. A datagram socket keeps message
// and descriptor together and has no framing that could go wrong.
//
// The package is linked into the plugin, which is started for each pod: it uses the standard library and
// golang.org/x/sys and nothing of the agent.
package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

const (
	// Version is the version of the protocol that this package speaks. It changes only when an older peer
	// would misunderstand; a field that an older peer may ignore is no new version.
	Version = 1
	// MaxMessage bounds a message in bytes.
	MaxMessage = 64 << 10
	// MaxTimeout bounds how long a request may take.
	MaxTimeout = 2 * time.Minute

	// maxName bounds names and IDs; Kubernetes' own bound is 253.
	maxName = 256
	// maxPath is the kernel's PATH_MAX.
	maxPath = 4096
	// maxAddresses bounds the addresses of a pod.
	maxAddresses = 64
	// attachmentsPerMessage keeps a message of attachments below MaxMessage: each has two names.
	attachmentsPerMessage = 100
	// maxAttachments bounds what one GC may name in all. A node runs some hundred pods.
	maxAttachments = 10_000
)

// Codes of errors. Those below 100 are the CNI specification's, the others are this plugin's own.
const (
	CodeInvalidRequest = 4
	CodeIncompatible   = 1
	CodeTryAgain       = 11
	CodeUnavailable    = 50
	CodeNotEnforced    = 100
	CodeInternal       = 999
)

// Commands, named as in the CNI specification.
const (
	Add    = "ADD"
	Check  = "CHECK"
	Delete = "DEL"
	GC     = "GC"
	Status = "STATUS"
)

// Request is what the plugin asks of the agent.
type Request struct {
	Version int    `json:"version"`
	Command string `json:"command"`
	// Timeout is how long the plugin will wait for the answer; Call fills it in from its context.
	Timeout time.Duration `json:"timeout,omitempty"`

	ContainerID string `json:"containerID,omitempty"` // of the sandbox
	IfName      string `json:"ifName,omitempty"`
	// NetnsPath is the namespace as the runtime names it: for logs, and for looking whether it is still there
	// when the agent happens to see the same path. What counts is the descriptor.
	NetnsPath    string `json:"netnsPath,omitempty"`
	PodNamespace string `json:"podNamespace,omitempty"`
	PodName      string `json:"podName,omitempty"`
	PodUID       string `json:"podUID,omitempty"` // empty with runtimes that do not tell
	// Addresses are those that the plugins before this one gave to the pod.
	Addresses []netip.Addr `json:"addresses,omitempty"`

	// Valid, for GC, are the attachments that still exist. Every other one is gone.
	Valid []Attachment `json:"valid,omitempty"`
	// More says that another message with further attachments follows this one.
	More bool `json:"more,omitempty"`
}

// Attachment is one interface of one sandbox.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// Response is the agent's answer.
type Response struct {
	Version int `json:"version"`
	// Enrolled says, after ADD, that the pod's modes are in force and its listeners stand. Without it the pod
	// is not to be enrolled, for Reason.
	Enrolled bool   `json:"enrolled,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Error    *Error `json:"error,omitempty"`
}

// Error is a failure as CNI tells it to the runtime. A Handler may return one to choose code and retry.
type Error struct {
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"`
	// Retry says that asking again within the plugin's own time may help: the agent has just started, say.
	Retry bool `json:"retry,omitempty"`
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// encode returns the messages that carry r: one, or several when a GC names many attachments.
func (r *Request) encode() ([][]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	if len(r.Valid) > maxAttachments {
		return nil, fmt.Errorf("request: %d attachments, at most %d", len(r.Valid), maxAttachments)
	}
	var messages [][]byte
	part := *r
	for rest := r.Valid; ; {
		part.Valid = rest[:min(len(rest), attachmentsPerMessage)]
		rest = rest[len(part.Valid):]
		part.More = len(rest) > 0
		data, err := json.Marshal(&part)
		if err != nil {
			return nil, fmt.Errorf("request: %w", err)
		}
		if len(data) > MaxMessage {
			return nil, fmt.Errorf("request: %w", errTooLarge)
		}
		if messages = append(messages, data); !part.More {
			return messages, nil
		}
	}
}

var errTooLarge = errors.New("message is larger than 64 KiB")

// decodeRequest reads one message. What it returns has been checked: nothing in it is longer than it may be,
// and what its command needs is there.
func decodeRequest(data []byte) (*Request, error) {
	if len(data) > MaxMessage {
		return nil, &Error{Code: CodeInvalidRequest, Msg: errTooLarge.Error()}
	}
	r := new(Request)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, &Error{Code: CodeInvalidRequest, Msg: "request is no JSON of a request", Details: err.Error()}
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Request) check() error {
	if r.Version != Version {
		return &Error{Code: CodeIncompatible, Msg: "plugin and agent do not speak the same protocol",
			Details: fmt.Sprintf("request has version %d, this side speaks %d", r.Version, Version)}
	}
	if err := r.checkFields(); err != nil {
		return &Error{Code: CodeInvalidRequest, Msg: "request is not valid", Details: err.Error()}
	}
	return nil
}

func (r *Request) checkFields() error {
	switch r.Command {
	case Add, Check:
		if r.PodNamespace == "" || r.PodName == "" {
			return fmt.Errorf("%s without a pod's name and namespace", r.Command)
		}
		if r.ContainerID == "" {
			return fmt.Errorf("%s without a container ID", r.Command)
		}
	case Delete:
		if r.ContainerID == "" {
			return errors.New("DEL without a container ID")
		}
	case GC, Status:
	default:
		return fmt.Errorf("unknown command %.32q", r.Command)
	}
	if r.More && r.Command != GC {
		return fmt.Errorf("%s in more than one message", r.Command)
	}
	if r.Timeout < 0 {
		return errors.New("negative timeout")
	}
	return r.checkSizes()
}

func (r *Request) checkSizes() error {
	for name, value := range map[string]string{
		"container ID": r.ContainerID, "interface": r.IfName, "pod namespace": r.PodNamespace,
		"pod name": r.PodName, "pod UID": r.PodUID,
	} {
		// These end up in logs, and the agent may look for them in paths.
		if len(value) > maxName || strings.ContainsAny(value, "/\x00\n") {
			return fmt.Errorf("%s is too long or has a character that none has", name)
		}
	}
	if len(r.NetnsPath) > maxPath || strings.ContainsAny(r.NetnsPath, "\x00\n") {
		return errors.New("path of the network namespace is too long or no path")
	}
	if len(r.Addresses) > maxAddresses {
		return fmt.Errorf("%d addresses, at most %d", len(r.Addresses), maxAddresses)
	}
	for _, a := range r.Addresses {
		if !a.IsValid() {
			return errors.New("an address is empty")
		}
	}
	for _, a := range r.Valid {
		if len(a.ContainerID) > maxName || len(a.IfName) > maxName {
			return errors.New("an attachment's name is too long")
		}
	}
	return nil
}

// needsNetns reports whether a descriptor of the network namespace belongs to the request.
func (r *Request) needsNetns() bool { return r.Command == Add || r.Command == Check }

func decodeResponse(data []byte) (*Response, error) {
	r := new(Response)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	// Without this, any JSON object would read as "not to be enrolled".
	if r.Version != Version {
		return nil, fmt.Errorf("answer: version %d, want %d", r.Version, Version)
	}
	return r, nil
}

// encodeResponse cuts texts that would not fit: an answer has to reach the plugin.
func encodeResponse(r *Response) ([]byte, error) {
	const maxText = 3 << 10 // a byte becomes six at worst, and there are three texts
	cut := *r
	cut.Reason = cut.Reason[:min(len(cut.Reason), maxText)]
	if r.Error != nil {
		e := *r.Error
		e.Msg, e.Details = e.Msg[:min(len(e.Msg), maxText)], e.Details[:min(len(e.Details), maxText)]
		cut.Error = &e
	}
	data, err := json.Marshal(&cut)
	if err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	return data, nil
}
