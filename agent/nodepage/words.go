package nodepage

import (
	"fmt"
	"html/template"
	"strings"
	"time"
	"unicode"
)

// maxText is how many characters of a text are shown: peers choose some of them.
const maxText = 300

func functions() template.FuncMap {
	return template.FuncMap{
		"text": text, "parts": func(s string) []string { return strings.Split(text(s), "/") }, "plural": plural,
		"ago":   func(now, t time.Time) string { return span(now.Sub(t)) + " ago" },
		"until": func(t, now time.Time) string { return span(t.Sub(now)) },
		"utc":   func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"clock": func(t time.Time) string { return t.UTC().Format("15:04:05") + " UTC" },
		"mode":  func(m string) string { return strings.ToLower(text(m)) },
		"more":  func(shown, all int) int { return all - shown },
	}
}

// text makes a string harmless to look at: no controls, among them those that reverse the direction of writing.
func text(s string) string {
	runes := []rune(strings.Map(func(r rune) rune {
		if unicode.IsGraphic(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s))
	if len(runes) > maxText {
		runes = append(runes[:maxText], '…')
	}
	return string(runes)
}

// span is a duration as people say it, in two units at most.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 0:
		return "0 s"
	case d < time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < 10*time.Minute:
		return fmt.Sprintf("%d min", d/time.Minute) + rest(d%time.Minute/time.Second, "s")
	case d < time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%d h", d/time.Hour) + rest(d%time.Hour/time.Minute, "min")
	default:
		return fmt.Sprintf("%d d", d/day) + rest(d%day/time.Hour, "h")
	}
}

func rest(n time.Duration, unit string) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" %d %s", n, unit)
}
