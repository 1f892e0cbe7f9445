package observe

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"time"
)

const (
	// stateVersion is that of the file's form. Files of others are left out: nobody reads them.
	stateVersion = 2
	// maxState bounds the file; of the kernel's 16,384 counts 24 bytes each are kept.
	maxState       = 2 << 20
	maxKernelState = 16384
	kernelEntry    = 24
)

// state is the file. Its names are short since there are many of them.
type state struct {
	Version   int         `json:"version"`
	Boot      string      `json:"boot"`
	Since     time.Time   `json:"since"`
	Dropped   time.Time   `json:"dropped,omitzero"`
	Workloads []Watched   `json:"workloads"`
	Seen      []stateSeen `json:"seen"`   // by rank, the latest first
	Kernel    []byte      `json:"kernel"` // hash of the key, count and last, 8 bytes each
	// Cookies are the workloads' network namespaces, of those that may be gone when the next agent starts, too.
	Cookies map[uint64]int `json:"cookies,omitempty"`

	now time.Time
}

type stateSeen struct {
	Workload int     `json:"w"` // index
	Port     uint16  `json:"p"`
	Carried  Carried `json:"c"`
	Peer     Peer    `json:"peer"`
	Count    uint64  `json:"n"`
	Open     uint64  `json:"o,omitempty"`
	First    int64   `json:"f"` // Unix, milliseconds
	Last     int64   `json:"l"`
}

func hashOf(k kernelKey) uint64 {
	h := fnv.New64a()
	var b [26]byte
	binary.BigEndian.PutUint64(b[:], k.cookie)
	binary.BigEndian.PutUint16(b[8:], k.port)
	address := k.peer.As16()
	copy(b[10:], address[:])
	_, _ = h.Write(b[:])
	return h.Sum64()
}

// Save writes the state file. It is called every so often and at the end. When it fails the last file stays as it was.
func (r *Recorder) Save() error {
	if r.path == "" {
		return nil
	}
	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	s := r.state()
	r.mu.Unlock()
	text, err := s.encode()
	if err == nil {
		err = writeFile(r.path, text)
	}
	if err != nil {
		return fmt.Errorf("observations: %w", err)
	}
	return nil
}

func (r *Recorder) state() *state {
	s := &state{Version: stateVersion, Boot: r.boot, Since: r.seen.since, Dropped: r.seen.dropped, now: time.Now()}
	index := map[*Watched]int{}
	for _, w := range r.seen.workloads {
		index[w] = len(s.Workloads)
		saved := *w // labels never change
		saved.Left, saved.Elsewhere = maps.Clone(w.Left), maps.Clone(w.Elsewhere)
		s.Workloads = append(s.Workloads, saved)
	}
	for _, x := range r.seen.by {
		s.Seen = append(s.Seen, stateSeen{index[x.of], x.port, x.carried, x.peer, x.count, x.open, x.first.UnixMilli(), x.last.UnixMilli()})
	}
	slices.SortFunc(s.Seen, func(a, b stateSeen) int {
		return cmp.Or(cmp.Compare(a.Carried.rank(), b.Carried.rank()), cmp.Compare(b.Last, a.Last))
	})
	s.Cookies = map[uint64]int{}
	for cookie, w := range r.seen.enrolled {
		if i, known := index[w]; known {
			s.Cookies[cookie] = i
		}
	}
	for hash, c := range r.seen.kernel {
		if len(s.Kernel) >= maxKernelState*kernelEntry {
			break
		}
		for _, n := range [...]uint64{hash, c.count, c.last} {
			s.Kernel = binary.BigEndian.AppendUint64(s.Kernel, n)
		}
	}
	return s
}

// encode leaves out the oldest observations when there is no room for all, and then says so.
func (s *state) encode() ([]byte, error) {
	for {
		text, err := json.Marshal(s)
		if err != nil || len(text) <= maxState {
			return text, err
		}
		if len(s.Seen) == 0 { // workloads with very many labels
			s.Workloads = s.Workloads[:len(s.Workloads)*3/4]
			maps.DeleteFunc(s.Cookies, func(_ uint64, i int) bool { return i >= len(s.Workloads) })
			s.Dropped = s.now
			continue
		}
		keep := len(s.Seen) * 3 / 4
		for _, x := range s.Seen[keep:] {
			if last := time.UnixMilli(x.Last); x.Carried == Plaintext && last.After(s.Dropped) {
				s.Dropped = last
			}
		}
		s.Seen = s.Seen[:keep]
	}
}

// writeFile replaces the file at once, or not at all.
func writeFile(path string, text []byte) error {
	temporary := path + ".new"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(temporary)))
	}
	return nil
}

// Remove removes the state file of an agent that is gone for good.
func Remove(path string) error {
	if path == "" {
		return nil
	}
	if err := errors.Join(ignoreMissing(os.Remove(path)), ignoreMissing(os.Remove(path+".new"))); err != nil {
		return fmt.Errorf("observations: %w", err)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// load takes over what an earlier process saw.
func (r *Recorder) load(now time.Time) {
	if r.path == "" {
		return
	}
	s, err := readState(r.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		r.log.Warn("earlier observations are left out", "file", r.path, "error", err)
		return
	}
	r.restore(s, now)
	r.log.Info("earlier observations are known", "file", r.path, "since", s.Since, "observations", len(r.seen.by))
}

func readState(path string) (*state, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxState {
		return nil, errors.New("file is larger than this version writes")
	}
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &version); err != nil {
		return nil, err
	}
	if version.Version != stateVersion {
		return nil, errors.New("version " + strconv.Itoa(version.Version) + " is unknown")
	}
	s := &state{}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, err
	}
	if len(s.Kernel)%kernelEntry != 0 {
		return nil, errors.New("counts of the kernel are cut off")
	}
	for _, x := range s.Seen {
		if x.Workload < 0 || x.Workload >= len(s.Workloads) {
			return nil, errors.New("an observation of no workload")
		}
	}
	for _, i := range s.Cookies {
		if i < 0 || i >= len(s.Workloads) {
			return nil, errors.New("a network namespace of no workload")
		}
	}
	return s, nil
}

func (r *Recorder) restore(s *state, now time.Time) {
	o := &r.seen
	if !s.Since.After(now) {
		o.since, o.dropped = s.Since, s.Dropped
	}
	workloads := make([]*Watched, len(s.Workloads))
	for i := range s.Workloads {
		w := s.Workloads[i]
		if w.Since.After(now) { // the clock was ahead
			w.Since = now
		}
		if w.Blind.After(now) {
			w.Blind = now
		}
		workloads[i] = &w
		o.workloads[w.Key()] = &w
	}
	for _, x := range s.Seen {
		w := o.workloads[workloads[x.Workload].Key()]
		last := time.UnixMilli(x.Last)
		if last.After(now) {
			last = now
		}
		o.by[observationKey{w, x.Port, x.Carried, x.Peer.Key()}] = &observation{of: w, port: x.Port, carried: x.Carried, peer: x.Peer,
			count: x.Count, open: x.Open, first: time.UnixMilli(x.First), last: last}
	}
	if s.Boot == r.boot {
		for cookie, i := range s.Cookies {
			o.enrolled[cookie] = o.workloads[workloads[i].Key()]
		}
		for entry := range slices.Chunk(s.Kernel, kernelEntry) {
			o.kernel[binary.BigEndian.Uint64(entry)] = counted{binary.BigEndian.Uint64(entry[8:]), binary.BigEndian.Uint64(entry[16:])}
		}
	}
	o.expire(now.Add(-r.window))
}
