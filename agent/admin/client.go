package admin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"
)

const (
	dialTimeout = 3 * time.Second
	// What is known is answered at once; a handshake takes its time.
	certificatesTimeout = 15 * time.Second
	handshakeTimeout    = callTimeout + 5*time.Second
	// maxAnswer bounds what a client takes: 10,000 identities are 40 MB or so.
	maxAnswer = 256 << 20
)

// Client asks the agent behind a socket.
type Client struct {
	path    string
	version string
	http    *http.Client
}

var _ Node = (*Client)(nil)

// NewClient returns a Client. It dials for every call. version is the client's own.
func NewClient(path, version string) *Client {
	dialer := &net.Dialer{Timeout: dialTimeout}
	return &Client{path: path, version: version, http: &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", path)
			},
		},
	}}
}

// Certificates implements Node.
func (c *Client) Certificates(ctx context.Context) (*Certificates, error) {
	ctx, cancel := context.WithTimeout(ctx, certificatesTimeout)
	defer cancel()
	out := &Certificates{}
	return out, c.call(ctx, http.MethodGet, pathCertificates, nil, out)
}

// Handshake implements Node.
func (c *Client) Handshake(ctx context.Context, from, to string) (*Handshake, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	out := &Handshake{}
	return out, c.call(ctx, http.MethodPost, pathHandshake, handshakeRequest{from, to}, out)
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("agent: request: %w", err)
	}
	if in == nil {
		body = nil
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("agent: request: %w", err)
	}
	r.Header.Set(versionHeader, c.version)
	answer, err := c.http.Do(r)
	if err != nil {
		return c.unreachable(err)
	}
	defer answer.Body.Close()
	limited := &io.LimitedReader{R: answer.Body, N: maxAnswer + 1}
	if answer.StatusCode != http.StatusOK {
		return c.refused(answer, limited)
	}
	if err := json.NewDecoder(limited).Decode(out); err != nil {
		if limited.N <= 0 {
			err = fmt.Errorf("is larger than %d MB", maxAnswer>>20)
		}
		return fmt.Errorf("agent: answer%s: %w", c.skew(answer), c.unwrapped(err))
	}
	return nil
}

// refused is the error that an agent answered with.
func (c *Client) refused(answer *http.Response, body io.Reader) error {
	var f failure
	if err := json.NewDecoder(io.LimitReader(body, maxRequest)).Decode(&f); err != nil || f.Error == "" {
		f.Error = answer.Status
	}
	if f.Reason == reasonUnknownWorkload {
		return &unknownWorkload{f.Error}
	}
	return fmt.Errorf("agent%s: %s", c.skew(answer), f.Error)
}

// unknownWorkload has the words of the agent.
type unknownWorkload struct{ text string }

// Error implements error.
func (e *unknownWorkload) Error() string { return e.text }

// Is makes errors.Is find ErrUnknownWorkload.
func (e *unknownWorkload) Is(target error) bool { return target == ErrUnknownWorkload }

// skew says what may explain an answer that is not understood.
func (c *Client) skew(answer *http.Response) string {
	agent := answer.Header.Get(versionHeader)
	if agent == c.version {
		return ""
	}
	return fmt.Sprintf(" (the agent is Culvert %s, this is %s)", cmp.Or(agent, "of unknown version"), c.version)
}

// unreachable says in terms of agents and sockets why there is no answer.
func (c *Client) unreachable(err error) error {
	err = c.unwrapped(err)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no agent's socket on this machine: %w", err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("the agent of this node is not running, only its socket is left: %w", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("root alone may ask the agent of this node: %w", err)
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("agent at %s: does not answer: %w", c.path, err)
	}
	// It closes connections when it ends, and those of other users than root.
	return fmt.Errorf("agent at %s: gave no answer: %w", c.path, err)
}

// unwrapped takes off what package http says of a URL that people never see.
func (c *Client) unwrapped(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
