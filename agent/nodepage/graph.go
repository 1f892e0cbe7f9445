package nodepage

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
)

// The drawing: those who connect on the left, those who are connected to on the right. Units are CSS pixels at full
// size.
const (
	maxDrawn  = 40 // pairs
	boxWidth  = 290
	boxHeight = 28
	rowHeight = 38
	drawWidth = 900
	headRoom  = 34
	maxLabel  = 32 // characters
)

// graph is who talks to whom, ready to be drawn.
type graph struct {
	Width, Height       int
	Right               int // where the servers begin
	BoxWidth, BoxHeight int
	Boxes               []box
	Lines               []line
	Drawn               int // pairs
}

// box is a client or a server.
type box struct {
	X, Y        int
	Label, Full string
}

// TextX and TextY are where the label begins.
func (b box) TextX() int { return b.X + 8 }

// TextY is the label's baseline.
func (b box) TextY() int { return b.Y + boxHeight/2 + 5 }

// line is one of the ways a pair's connections went.
type line struct {
	Kind   string // mtls, same-node, plaintext, refused, failed
	Path   string
	Width  string
	X, Y   string // of the sign
	Sign   string // tells the kind without its colour
	Text   string
	Double bool
}

// draw lays out the first edges.
func draw(edges []Edge) graph {
	edges = cut(edges, maxDrawn)
	left, right := column{x: 0}, column{x: drawWidth - boxWidth}
	for i := range edges {
		left.add(edges[i].From)
		right.add(server(&edges[i]))
	}
	left.arrange(nil)
	right.arrange(func(to string) (sum, n float64) { // next to its clients: fewer lines cross
		for i := range edges {
			if server(&edges[i]) == to {
				sum, n = sum+float64(left.place[edges[i].From]), n+1
			}
		}
		return sum, n
	})
	g := graph{Width: drawWidth, Right: right.x, BoxWidth: boxWidth, BoxHeight: boxHeight, Drawn: len(edges)}
	g.Height = headRoom + max(len(left.names), len(right.names))*rowHeight
	g.Boxes = slices.Concat(left.boxes(), right.boxes())
	for i := range edges {
		g.Lines = append(g.Lines, lines(&edges[i], left.middle(edges[i].From), right.middle(server(&edges[i])), i)...)
	}
	return g
}

func server(e *Edge) string { return e.To + ":" + strconv.Itoa(int(e.Port)) }

type column struct {
	x     int
	names []string
	place map[string]int
}

func (c *column) add(name string) {
	if c.place == nil {
		c.place = map[string]int{}
	}
	if _, there := c.place[name]; !there {
		c.place[name] = len(c.names)
		c.names = append(c.names, name)
	}
}

// arrange sorts by name, or by the mean place of those it is connected with.
func (c *column) arrange(connected func(string) (sum, n float64)) {
	mean := map[string]float64{}
	if connected != nil {
		for _, name := range c.names {
			sum, n := connected(name)
			mean[name] = sum / n
		}
	}
	slices.SortFunc(c.names, func(a, b string) int { return cmp.Or(cmp.Compare(mean[a], mean[b]), cmp.Compare(a, b)) })
	for i, name := range c.names {
		c.place[name] = i
	}
}

func (c *column) top(name string) int    { return headRoom + c.place[name]*rowHeight }
func (c *column) middle(name string) int { return c.top(name) + boxHeight/2 }

func (c *column) boxes() []box {
	var all []box
	for _, name := range c.names {
		full := text(name)
		all = append(all, box{X: c.x, Y: c.top(name), Label: shorten(full), Full: full})
	}
	return all
}

// shorten leaves out the middle: the ends of pods' names tell them apart.
func shorten(s string) string {
	r := []rune(s)
	if len(r) <= maxLabel {
		return s
	}
	return string(r[:maxLabel/2-1]) + "…" + string(r[len(r)-maxLabel/2:])
}

// lines draws the ways of one pair below each other.
func lines(e *Edge, fromY, toY, index int) []line {
	type way struct {
		kind, sign, text string
		count            uint64
	}
	ways := slices.DeleteFunc([]way{
		{"mtls", "●", "mTLS", e.MTLS},
		{"same-node", "■", "same node", e.SameNode},
		{"plaintext", "◇", "plaintext", e.Plaintext},
		{"refused", "✕", "refused", e.Refused},
		{"failed", "!", "failed", e.Failed},
	}, func(w way) bool { return w.count == 0 })
	const x1, x2 = boxWidth, drawWidth - boxWidth
	var all []line
	for i, w := range ways {
		shift := float64(2*i-len(ways)+1) * 3
		y1, y2 := float64(fromY)+shift, float64(toY)+shift
		// Signs of neighbours would cover each other in one place.
		t := 0.3 + 0.1*float64((index+i)%5)
		b := 3*t*t - 2*t*t*t // of y, since both handles are in the middle
		x := x1 + (x2-x1)*(t*t*t+3*t*(1-t)/2)
		all = append(all, line{
			Kind: w.kind, Sign: w.sign, Double: w.kind == "same-node",
			Path:  fmt.Sprintf("M%d %.1fC%d %.1f %d %.1f %d %.1f", x1, y1, (x1+x2)/2, y1, (x1+x2)/2, y2, x2, y2),
			Width: fmt.Sprintf("%.1f", 1.5+min(2.5, math.Log10(float64(w.count))/2)),
			X:     fmt.Sprintf("%.1f", x), Y: fmt.Sprintf("%.1f", y1+(y2-y1)*b),
			Text: fmt.Sprintf("%s to %s: %d %s", text(e.From), text(server(e)), w.count, w.text),
		})
	}
	return all
}
