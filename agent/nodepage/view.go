package nodepage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"html/template"
	"net/url"
	"time"
)

const (
	// fresh is for how long what the Source said is shown to whoever asks.
	fresh = time.Second
	// maxViews bounds how many filters are applied to one state, and so the work of a second.
	maxViews      = 32
	sourceTimeout = 3 * time.Second
)

var errTooManyFilters = errors.New("too many filters at one time")

// views makes what is shown out of what the Source says, once for all who ask within a moment.
type views struct {
	source    Source
	templates *template.Template
	build     string // tag of the files: an open page of another build reloads itself

	turn  chan struct{} // held while the rest is used
	taken time.Time
	state Page
	made  map[string]*view // by filter
}

// view is the page as rendered with a filter.
type view struct {
	shown    shown
	sections []section
	html     []byte
}

// section is a part of the page that is replaced by itself.
type section struct {
	Name string        `json:"name"`
	Tag  string        `json:"tag"` // of HTML
	HTML template.HTML `json:"html"`
}

// sectionNames are templates of page.html, in the page's order.
func sectionNames() []string {
	return []string{"summary", "health", "workloads", "graph", "connections", "refusals", "certificates"}
}

func newViews(source Source) *views {
	// The files are part of the program: a mistake in them shows in the first test.
	v := &views{source: source, templates: template.Must(template.New("").Funcs(functions()).ParseFS(files, "page.html"))}
	v.turn = make(chan struct{}, 1)
	sum := fnv.New64a()
	for _, name := range []string{"page.html", "page.css", "page.js"} {
		b, _ := files.ReadFile(name)
		sum.Write(b)
	}
	v.build = fmt.Sprintf("%x", sum.Sum64())
	return v
}

// get returns what is shown with a filter. One asks the Source and renders at a time, so that people who look take at
// most one processor from the agent.
func (v *views) get(ctx context.Context, filter string) (*view, error) {
	ctx, cancel := context.WithTimeout(ctx, sourceTimeout)
	defer cancel()
	select {
	case v.turn <- struct{}{}:
		defer func() { <-v.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("the agent has not answered: %w", ctx.Err())
	}
	if v.made == nil || time.Since(v.taken) >= fresh {
		page, err := v.source.Page(ctx)
		if err != nil {
			return nil, fmt.Errorf("the agent has not answered: %w", err)
		}
		v.taken, v.state, v.made = time.Now(), page, map[string]*view{}
	}
	if made := v.made[filter]; made != nil {
		return made, nil
	}
	if len(v.made) >= maxViews {
		return nil, errTooManyFilters
	}
	made, err := v.render(filter)
	if err == nil {
		v.made[filter] = made
	}
	return made, err
}

func (v *views) render(filter string) (*view, error) {
	made := &view{shown: show(&v.state, filter)}
	for _, name := range sectionNames() {
		html, err := v.execute(name, &made.shown)
		if err != nil {
			return nil, err
		}
		sum := fnv.New64a()
		sum.Write(html)
		made.sections = append(made.sections, section{name, fmt.Sprintf("%x", sum.Sum64()), template.HTML(html)})
	}
	var err error
	made.html, err = v.execute("page", struct {
		*shown
		Sections []section
		Build    string
	}{&made.shown, made.sections, v.build})
	return made, err
}

func (v *views) execute(name string, data any) ([]byte, error) {
	var b bytes.Buffer
	if err := v.templates.ExecuteTemplate(&b, name, data); err != nil {
		return nil, fmt.Errorf("page: %w", err)
	}
	return b.Bytes(), nil
}

// without returns the sections but those whose tags are given by name.
func (v *view) without(tags url.Values) []section {
	differ := []section{}
	for _, s := range v.sections {
		if tags.Get(s.Name) != s.Tag {
			differ = append(differ, s)
		}
	}
	return differ
}
