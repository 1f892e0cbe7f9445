package nodepage

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// object is a JSON object.
type object map[string]any

// Tab is a page in the browser. Its methods end the test when the browser does not do as it is told.
type Tab struct {
	t       *testing.T
	browser *Browser
	session string
	id      string

	mu       sync.Mutex
	problems []string // what the console says
	requests []string // URLs
}

// Open makes a new tab without a page.
func (b *Browser) Open(t *testing.T) *Tab {
	t.Helper()
	tab := &Tab{t: t, browser: b}
	var target struct{ TargetID, SessionID string }
	if err := b.call("", "Target.createTarget", object{"url": "about:blank"}, &target); err != nil {
		t.Fatal(err)
	}
	tab.id = target.TargetID
	if err := b.call("", "Target.attachToTarget", object{"targetId": tab.id, "flatten": true}, &target); err != nil {
		t.Fatal(err)
	}
	tab.session = target.SessionID
	b.mu.Lock()
	b.tabs[tab.session] = tab
	b.mu.Unlock()
	t.Cleanup(func() { _ = b.call("", "Target.closeTarget", object{"targetId": tab.id}, nil) })
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		tab.do(domain+".enable", object{}, nil)
	}
	tab.do("Emulation.setFocusEmulationEnabled", object{"enabled": true}, nil) // as if its window were in front
	return tab
}

func (tab *Tab) do(method string, params object, result any) {
	tab.t.Helper()
	if err := tab.browser.call(tab.session, method, params, result); err != nil {
		tab.t.Fatal(err)
	}
}

// event is called by the browser's reader.
func (tab *Tab) event(m message) {
	var p struct {
		Type    string // of a console call
		Args    []struct{ Value any }
		Request struct{ URL string }
		Entry   struct{ Level, Text, URL string }
		Details struct {
			Text      string
			Exception struct{ Description string }
		} `json:"exceptionDetails"`
	}
	if json.Unmarshal(m.Params, &p) != nil {
		return
	}
	tab.mu.Lock()
	defer tab.mu.Unlock()
	switch m.Method {
	case "Network.requestWillBeSent":
		tab.requests = append(tab.requests, p.Request.URL)
	case "Runtime.exceptionThrown":
		tab.problems = append(tab.problems, "exception: "+p.Details.Text+" "+p.Details.Exception.Description)
	case "Runtime.consoleAPICalled":
		tab.problems = append(tab.problems, fmt.Sprintf("console.%s: %v", p.Type, p.Args))
	case "Log.entryAdded":
		tab.problems = append(tab.problems, p.Entry.Level+": "+p.Entry.Text+" "+p.Entry.URL)
	}
}

// Problems returns what the console has said so far: of a good page, nothing.
func (tab *Tab) Problems() []string {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	return append([]string(nil), tab.problems...)
}

// Foreign returns the requests that went to anywhere but the origin of page.
func (tab *Tab) Foreign(page string) (all []string) {
	own, err := url.Parse(page)
	if err != nil {
		tab.t.Fatal(err)
	}
	tab.mu.Lock()
	defer tab.mu.Unlock()
	for _, request := range tab.requests {
		if u, err := url.Parse(request); err != nil || u.Scheme != own.Scheme || u.Host != own.Host {
			all = append(all, request)
		}
	}
	return all
}

// Go goes to a page and waits until it is loaded.
func (tab *Tab) Go(page string) {
	tab.t.Helper()
	var result struct{ ErrorText string }
	tab.do("Page.navigate", object{"url": page}, &result)
	if result.ErrorText != "" {
		tab.t.Fatalf("%s: %s", page, result.ErrorText)
	}
	tab.Wait("document.readyState === 'complete' && location.href !== 'about:blank'")
}

// Screen sets the size in CSS pixels, and the colour scheme: light or dark.
func (tab *Tab) Screen(width, height int, scheme string) {
	tab.t.Helper()
	tab.do("Emulation.setDeviceMetricsOverride", object{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}, nil)
	tab.do("Emulation.setEmulatedMedia", object{"features": []object{
		{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"},
	}}, nil)
}

// Eval evaluates an expression, whose value is read into result unless that is nil.
func (tab *Tab) Eval(expression string, result any) {
	tab.t.Helper()
	if err := tab.evaluate(expression, result); err != nil {
		tab.t.Fatal(err)
	}
}

func (tab *Tab) evaluate(expression string, result any) error {
	var answer struct {
		Result  struct{ Value json.RawMessage }
		Details *struct {
			Exception struct{ Description string }
		} `json:"exceptionDetails"`
	}
	params := object{"expression": expression, "returnByValue": true, "awaitPromise": true}
	if err := tab.browser.call(tab.session, "Runtime.evaluate", params, &answer); err != nil {
		return err
	}
	if answer.Details != nil {
		return fmt.Errorf("%s: %s", expression, answer.Details.Exception.Description)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(answer.Result.Value, result); err != nil {
		return fmt.Errorf("%s: %w: %s", expression, err, answer.Result.Value)
	}
	return nil
}

// Wait waits until a condition holds. Between two pages there may be nothing to evaluate it in.
func (tab *Tab) Wait(condition string) {
	tab.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		var holds bool
		err := tab.evaluate("!!("+condition+")", &holds)
		if err == nil && holds {
			return
		}
		if time.Now().After(end) {
			tab.t.Fatalf("waited in vain for %s (%v); the page says:\n%s\nconsole: %v", condition, err, tab.Text(), tab.Problems())
		}
	}
}

// WaitText waits until the page shows the text.
func (tab *Tab) WaitText(text string) {
	tab.t.Helper()
	quoted, _ := json.Marshal(text)
	tab.Wait("document.body.innerText.includes(" + string(quoted) + ")")
}

// Text is what the page shows.
func (tab *Tab) Text() (text string) {
	tab.t.Helper()
	tab.Eval("document.body.innerText", &text)
	return text
}

// Press presses and releases a key, by its DOM name.
func (tab *Tab) Press(key string) {
	tab.t.Helper()
	p := object{"type": "rawKeyDown", "key": key, "code": key, "windowsVirtualKeyCode": map[string]int{"Tab": 9, "Enter": 13}[key]}
	if key == "Enter" {
		p["type"], p["text"] = "keyDown", "\r"
	}
	tab.do("Input.dispatchKeyEvent", p, nil)
	p["type"] = "keyUp"
	tab.do("Input.dispatchKeyEvent", p, nil)
}

// Type enters text where the focus is.
func (tab *Tab) Type(text string) {
	tab.t.Helper()
	tab.do("Input.insertText", object{"text": text}, nil)
}

// maxPicture is in pixels; a crowded page is longer than anybody looks at.
const maxPicture = 8000

// Picture writes the page as PNG.
func (tab *Tab) Picture(path string) {
	tab.t.Helper()
	var size struct{ Width, Height float64 }
	tab.Eval(`({width: innerWidth, height: document.documentElement.scrollHeight})`, &size)
	var shot struct{ Data string }
	tab.do("Page.captureScreenshot", object{"format": "png", "captureBeyondViewport": true,
		"clip": object{"x": 0, "y": 0, "width": size.Width, "height": min(size.Height, maxPicture), "scale": 1}}, &shot)
	data, err := base64.StdEncoding.DecodeString(shot.Data)
	if err == nil {
		err = os.WriteFile(path, data, 0o644)
	}
	if err != nil {
		tab.t.Fatal(err)
	}
	tab.t.Logf("picture: %s", path)
}

func lines(all []string) string { return strings.Join(all, "\n\t") }
