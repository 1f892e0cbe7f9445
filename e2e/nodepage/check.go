package nodepage

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Page is what to check.
type Page struct {
	URL  string
	Name string   // begins the names of the pictures
	Says []string // texts that must be there, or come
	// Change, if any, alters what the agent knows; Then is a text that must come of it, without a reload.
	Change func()
	Then   string
	// Pictures is a folder; empty: the test's artifacts (go test -artifacts -outputdir DIR).
	Pictures string
}

// Check looks at a page as people do: wide and narrow, light and dark, by eye, by keyboard and by screen reader.
func Check(t *testing.T, b *Browser, p Page) {
	t.Helper()
	if p.Pictures == "" {
		p.Pictures = t.ArtifactDir()
	}
	tab := b.Open(t)
	tab.Screen(1280, 900, "light")
	tab.Go(p.URL)
	tab.WaitText("Live")
	for _, text := range p.Says {
		tab.WaitText(text)
	}
	checkUpdate(t, tab, p)
	for _, width := range []int{1280, 360} {
		for _, scheme := range []string{"light", "dark"} {
			tab.Screen(width, 900, scheme)
			checkLegible(t, tab, fmt.Sprintf("%d px, %s", width, scheme))
			tab.Picture(filepath.Join(p.Pictures, fmt.Sprintf("%s-%d-%s.png", p.Name, width, scheme)))
		}
		checkTables(t, tab, width)
		checkKeyboard(t, tab, p.URL, width)
	}
	if problems := tab.Problems(); len(problems) > 0 {
		t.Errorf("the console says:\n\t%s", lines(problems))
	}
	if foreign := tab.Foreign(p.URL); len(foreign) > 0 {
		t.Errorf("requests to elsewhere:\n\t%s", lines(foreign))
	}
	checkWithoutScript(t, b, p)
}

// checkUpdate sees to it that news come by themselves and leave the reader where they are.
func checkUpdate(t *testing.T, tab *Tab, p Page) {
	t.Helper()
	if p.Change == nil {
		return
	}
	tab.Eval(`window.same = true; document.querySelector("#workloads tbody tr").seen = true;
		document.querySelector("#filter").focus(); scrollTo(0, 150)`, nil)
	p.Change()
	tab.WaitText(p.Then)
	var kept []bool
	tab.Eval(`[window.same === true, document.querySelector("#workloads tbody tr").seen === true,
		document.activeElement.id === "filter", scrollY === 150]`, &kept)
	for i, what := range []string{"the page was loaded anew", "rows were replaced, not altered", "the focus was lost", "the page scrolled"} {
		if !kept[i] {
			t.Errorf("after an update: %s", what)
		}
	}
}

// checkLegible measures the contrast of all text (WCAG 2, AA) and looks for what sticks out of the screen.
func checkLegible(t *testing.T, tab *Tab, screen string) {
	t.Helper()
	var poor []string
	tab.Eval(`(() => {
		const rgb = (c) => c.match(/[\d.]+/g).map(Number);
		const light = (c) => rgb(c).slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
			.reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
		const behind = (e) => {
			if (e.closest(".box")) return getComputedStyle(e.parentNode.querySelector("rect")).fill;
			for (; e; e = e.parentElement) {
				const c = rgb(getComputedStyle(e).backgroundColor);
				if (c.length < 4 || c[3] > 0) return "rgb(" + c.slice(0, 3) + ")";
			}
			return "rgb(255,255,255)";
		};
		const poor = new Set();
		const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
		while (texts.nextNode()) {
			const e = texts.currentNode.parentElement, text = texts.currentNode.data.trim();
			if (!text || !e.getClientRects().length || e.closest("noscript, title")) continue;
			const style = getComputedStyle(e), front = e instanceof SVGElement ? style.fill : style.color, size = parseFloat(style.fontSize);
			const [a, b] = [light(front), light(behind(e))].sort((x, y) => y - x);
			const ratio = (a + 0.05) / (b + 0.05);
			if (ratio < 4.5) poor.add(text + ": contrast " + ratio.toFixed(2) + ", " + front + " on " + behind(e));
			if (size < 12) poor.add(text + ": " + size + " px");
		}
		const width = document.documentElement.clientWidth;
		for (const e of document.querySelectorAll("body *")) {
			if (e.closest(".scroll svg") || e.classList.contains("skip") || e.closest("thead")) continue;
			const r = e.getBoundingClientRect();
			if (r.width && (r.right > width + 1 || r.left < -1)) poor.add(e.outerHTML.slice(0, 80) + ": from " + r.left + " to " + r.right + " of " + width);
		}
		return [...poor];
	})()`, &poor)
	if len(poor) > 0 {
		t.Errorf("%s: hard to read:\n\t%s", screen, lines(poor))
	}
}

// checkTables looks at tables as a screen reader does, whatever they look like.
func checkTables(t *testing.T, tab *Tab, width int) {
	t.Helper()
	var tree struct {
		Nodes []struct {
			Ignored bool
			Role    struct{ Value string }
		}
	}
	tab.do("Accessibility.getFullAXTree", object{}, &tree)
	there := map[string]int{}
	for _, n := range tree.Nodes {
		if !n.Ignored {
			there[n.Role.Value]++
		}
	}
	var want struct{ Table, Row, Columnheader, Rowheader, Cell int }
	tab.Eval(`Object.fromEntries(["table", "row", "columnheader", "rowheader", "cell"].map((r) => [r, document.querySelectorAll("[role=" + r + "]").length]))`, &want)
	got := want
	got.Table, got.Row, got.Columnheader, got.Rowheader, got.Cell =
		there["table"], there["row"], there["columnheader"], there["rowheader"], there["cell"]
	if got != want || want.Table == 0 {
		t.Errorf("%d px: a screen reader sees %+v, want %+v", width, got, want)
	}
}

// checkKeyboard goes through the page with the tabulator.
func checkKeyboard(t *testing.T, tab *Tab, url string, width int) {
	t.Helper()
	tab.Go(url) // else it would go on from where the focus was
	tab.WaitText("Live")
	want := []string{
		"Skip to the content", "Workloads", "Graph", "Connections", "Refusals", "Certificates", "filter", "Graph, can be scrolled sideways",
	}
	var got []string
	for range want {
		tab.Press("Tab")
		var at struct {
			Name    string
			Visible bool
			Outline bool
		}
		tab.Eval(`(() => {
			const e = document.activeElement, r = e.getBoundingClientRect();
			return {name: e === document.body ? "nothing" : e.ariaLabel || e.id || e.innerText, outline: getComputedStyle(e).outlineStyle !== "none",
				visible: r.bottom > 0 && r.top < innerHeight && r.right > 0 && r.left < innerWidth};
		})()`, &at)
		got = append(got, at.Name)
		if !at.Visible || !at.Outline {
			t.Errorf("%d px: focus on %q cannot be seen", width, at.Name)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d px: focus goes\n\t%s\nwant\n\t%s", width, strings.Join(got, ", "), strings.Join(want, ", "))
	}
	tab.Eval(`document.querySelector(".skip").focus()`, nil)
	tab.Press("Enter")
	tab.Wait(`document.activeElement.id === "main"`)
	tab.Eval(`document.activeElement.blur(); scrollTo(0, 0)`, nil)
}

// checkWithoutScript reads the page with scripts switched off.
func checkWithoutScript(t *testing.T, b *Browser, p Page) {
	t.Helper()
	tab := b.Open(t)
	tab.Screen(1280, 900, "light")
	tab.do("Emulation.setScriptExecutionDisabled", object{"value": true}, nil)
	tab.Go(p.URL)
	for _, text := range append([]string{"Loaded anew every 15 seconds."}, p.Says...) {
		tab.WaitText(text)
	}
	tab.Eval(`document.querySelector("#filter").focus()`, nil)
	tab.Type("no such pod")
	tab.Press("Enter")
	tab.WaitText("No pod matches the filter.")
	if problems := tab.Problems(); len(problems) > 0 {
		t.Errorf("without script, the console says:\n\t%s", lines(problems))
	}
}
