package datapath

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// layoutVersion names the folder of our pins. It changes with the layout of any map, so that an agent never adopts maps
// it would misread.
const layoutVersion = "v1"

// layout knows where our things are pinned.
type layout struct{ root string }

func newLayout(bpffs string) layout { return layout{filepath.Join(bpffs, layoutVersion)} }

func (l layout) maps() string  { return filepath.Join(l.root, "maps") }
func (l layout) links() string { return filepath.Join(l.root, "links") }
func (l layout) pods() string  { return filepath.Join(l.root, "pods") }
func (l layout) pod(cookie uint64) string {
	return filepath.Join(l.pods(), strconv.FormatUint(cookie, 10))
}
func (l layout) mapPin(name string) string  { return filepath.Join(l.maps(), name) }
func (l layout) linkPin(name string) string { return filepath.Join(l.links(), name) }

func (l layout) create() error {
	for _, dir := range []string{l.root, l.maps(), l.links(), l.pods()} {
		if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
			return fmt.Errorf("pin folder: %w", err)
		}
	}
	return nil
}
