package walk

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// curlLimit bounds one request.
const curlLimit = 4 * time.Second

// answer is what the test application says.
type answer struct{ Pod, Client, Server, Path string }

// attempt is what came of one request, as the client has it.
type attempt struct {
	ok     bool
	reason string         // refused, reset, timeout, closed, unreachable, ...; of one that failed
	local  netip.AddrPort // the client's own address
	took   time.Duration
	answer answer
	said   string // by curl
}

func (a attempt) String() string {
	if a.ok {
		return "ok"
	}
	return a.reason
}

// newMarker is a text that exists nowhere else.
func newMarker() string { return "culvert-" + rand.Text() }

// mark begins what is printed about each request.
const mark = "~~~culvert~~~"

// ask makes one request after another with curl in a pod, each on a connection of its own.
func (s *suite) ask(ctx context.Context, from *pod, urls ...string) ([]attempt, error) {
	var script strings.Builder
	for _, url := range urls {
		fmt.Fprintf(&script, "echo '%s'; curl -gsv --noproxy '*' -m %d -w '\\n%s %%{exitcode} %%{local_ip} %%{local_port} %%{time_total} %%{http_code}\\n' '%s' 2>&1; ",
			mark, int(curlLimit.Seconds()), mark, url)
	}
	script.WriteString("true")
	out, err := s.inPod(ctx, from, script.String())
	if err != nil {
		return nil, fmt.Errorf("ask from pod %s: %w", from.ref(), err)
	}
	return parseAttempts(out, len(urls))
}

// inPod runs a shell script in a pod.
func (s *suite) inPod(ctx context.Context, p *pod, script string) (string, error) {
	return s.kubectl(ctx, "exec", "--namespace="+p.namespace, p.name, "--container=app", "--", "sh", "-c", script)
}

func parseAttempts(out string, want int) ([]attempt, error) {
	var attempts []attempt
	blocks := strings.Split(out, mark+"\n")[1:]
	for _, block := range blocks {
		a, err := parseAttempt(block)
		if err != nil {
			return nil, err
		}
		attempts = append(attempts, a)
	}
	if len(attempts) != want {
		return nil, fmt.Errorf("%d requests, but %d were reported: %q", want, len(attempts), out)
	}
	return attempts, nil
}

func parseAttempt(block string) (attempt, error) {
	a := attempt{said: block}
	before, figures, found := strings.Cut(block, mark+" ")
	fields := strings.Fields(figures)
	if !found || len(fields) < 3 {
		return a, fmt.Errorf("curl did not report: %q", block)
	}
	code := fields[0]
	// Addresses are missing where no connection came to be.
	seconds, err := strconv.ParseFloat(fields[len(fields)-2], 64)
	if err != nil {
		return a, fmt.Errorf("curl's time: %w", err)
	}
	a.took = time.Duration(seconds * float64(time.Second))
	if len(fields) == 5 {
		if ip, err := netip.ParseAddr(fields[1]); err == nil {
			port, _ := strconv.ParseUint(fields[2], 10, 16) // curl prints numbers
			a.local = netip.AddrPortFrom(ip, uint16(port))
		}
	}
	if code == "0" && fields[len(fields)-1] == "200" {
		for line := range strings.Lines(before) {
			if strings.HasPrefix(line, "{") {
				a.ok = json.Unmarshal([]byte(line), &a.answer) == nil
			}
		}
	}
	if !a.ok {
		a.reason = reasonOf(code, block)
	}
	return a, nil
}

// reasonOf names why a request failed, by curl's exit code and its words: one code stands for several reasons.
func reasonOf(code, said string) string {
	switch {
	case strings.Contains(said, "Connection refused"):
		return "refused"
	case strings.Contains(said, "Connection reset"):
		return "reset"
	case code == "52":
		return "closed"
	case code == "28":
		return "timeout"
	case code == "6":
		return "name not resolved"
	case strings.Contains(said, "No route to host"), strings.Contains(said, "unreachable"):
		return "unreachable"
	}
	return "curl ended with " + code
}

// askOnce makes one request.
func (s *suite) askOnce(ctx context.Context, from *pod, url string) (attempt, error) {
	all, err := s.ask(ctx, from, url)
	if err != nil {
		return attempt{}, err
	}
	return all[0], nil
}

// want asks until every URL has the outcome, or until the time is up: ok, refused, or stopped, which is refused or an
// immediate reset. Each try must itself be quick where the outcome is a refusal.
func (s *suite) want(ctx context.Context, limit time.Duration, from *pod, outcome string, urls ...string) (string, error) {
	var got []string
	err := until(ctx, limit, func(ctx context.Context) error {
		attempts, err := s.ask(ctx, from, urls...)
		if err != nil {
			return err
		}
		got = nil
		var errs []error
		for i, a := range attempts {
			got = append(got, a.String())
			if err := a.check(outcome); err != nil {
				errs = append(errs, fmt.Errorf("%s from %s: %w", urls[i], from.ref(), err))
			}
		}
		return errors.Join(errs...)
	})
	return strings.Join(got, ", "), err
}

// Outcomes of want.
const (
	wantOK      = "ok"
	wantRefused = "refused"
	wantStopped = "stopped"
)

// check compares an attempt with what was wanted.
func (a attempt) check(outcome string) error {
	const atOnce = 1500 * time.Millisecond // separates a refusal from something that gave up
	switch {
	case outcome == wantOK && a.ok:
		return nil
	case outcome == wantRefused && a.reason == "refused" && a.took < atOnce:
		return nil
	case outcome == wantStopped && (a.reason == "refused" || a.reason == "reset" || a.reason == "closed") && a.took < atOnce:
		return nil
	}
	return fmt.Errorf("want %s, got %s after %s: %s", outcome, a, a.took.Round(time.Millisecond), tail(a.said, 6))
}

// tail is the last lines of a text.
func tail(s string, lines int) string {
	all := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(all[max(0, len(all)-lines):], " | ")
}

// page is the URL of a port with a path.
func page(at netip.AddrPort, path string) string { return "http://" + at.String() + "/" + path }
