package file

import "bytes"

// chunk is a piece of a file that holds at least one YAML document.
type chunk struct {
	data     []byte
	line     int // of its first line, from 1
	document int // of its first document, from 1
}

// split cuts a file at its document markers before anything is parsed, so that a document which does not
// parse takes no other with it. A line that begins with "---" ends a document even inside a block scalar,
// which is why no parser is needed here.
func split(data []byte) []chunk {
	var chunks []chunk
	start, startLine, line, document := 0, 1, 1, 0
	cut := func(end int) {
		piece := data[start:end]
		marked := isMarker(piece, "---")
		if !marked && isBlank(piece) {
			return
		}
		document++
		if !isBlank(piece) {
			chunks = append(chunks, chunk{piece, startLine, document})
		}
	}
	for offset := 0; offset < len(data); line++ {
		rest := data[offset:]
		if offset > start && isMarker(rest, "---") {
			cut(offset)
			start, startLine = offset, line
		}
		next := len(data)
		if i := bytes.IndexByte(rest, '\n'); i >= 0 {
			next = offset + i + 1
		}
		if isMarker(rest, "...") {
			cut(offset)
			start, startLine = next, line+1
		}
		offset = next
	}
	cut(len(data))
	return chunks
}

func isMarker(line []byte, marker string) bool {
	if !bytes.HasPrefix(line, []byte(marker)) {
		return false
	}
	return len(line) == 3 || line[3] == ' ' || line[3] == '\t' || line[3] == '\n' || line[3] == '\r'
}

// isBlank reports whether a document is nothing but comments, directives and its marker.
func isBlank(piece []byte) bool {
	if isMarker(piece, "---") {
		piece = piece[3:]
	}
	for len(piece) > 0 {
		line := piece
		if i := bytes.IndexByte(piece, '\n'); i >= 0 {
			line, piece = piece[:i], piece[i+1:]
		} else {
			piece = nil
		}
		if len(line) > 0 && line[0] == '%' {
			continue
		}
		if text := bytes.TrimSpace(line); len(text) > 0 && text[0] != '#' {
			return false
		}
	}
	return true
}
