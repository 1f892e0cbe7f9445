package logging

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestQueueNeverBlocks: while the reader of the log does not read, lines are dropped and counted; what is kept arrives
// whole and in order.
func TestQueueNeverBlocks(t *testing.T) {
	r, w := io.Pipe()
	q := NewQueue(w)
	line := []byte(strings.Repeat("x", 1023) + "\n")
	const lines = 3000
	for range lines {
		if n, err := q.Write(line); n != len(line) || err != nil {
			t.Fatalf("wrote %d, %v", n, err)
		}
	}
	if q.Dropped() == 0 {
		t.Error("nothing was dropped")
	}
	read := make(chan int)
	go func() {
		got, _ := io.ReadAll(r)
		read <- bytes.Count(got, line)
	}()
	q.Close(5 * time.Second)
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if n := <-read; n+int(q.Dropped()) != lines {
		t.Errorf("%d lines written, %d dropped, of %d", n, q.Dropped(), lines)
	}
}

func TestQueueWritesWhatWaitsAtTheEnd(t *testing.T) {
	var out bytes.Buffer
	q := NewQueue(&out)
	log := slog.New(slog.NewTextHandler(q, nil))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 100 {
				log.Info("line", "number", i)
			}
		})
	}
	wg.Wait()
	q.Close(5 * time.Second)
	if n := strings.Count(out.String(), "msg=line"); n != 400 || q.Dropped() != 0 {
		t.Errorf("%d lines, %d dropped", n, q.Dropped())
	}
	log.Info("late")
	if q.Dropped() != 1 {
		t.Error("a line after the end is not counted")
	}
}

// TestQueueEndsWithoutItsReader: a reader that has stopped does not keep us from ending.
func TestQueueEndsWithoutItsReader(t *testing.T) {
	r, w := io.Pipe()
	q := NewQueue(w)
	_, _ = q.Write([]byte("line\n"))
	q.Close(10 * time.Millisecond)
	_ = r.Close()
	<-q.done
}

// disk is full for the first write.
type disk struct {
	bytes.Buffer
	writes int
}

func (d *disk) Write(p []byte) (int, error) {
	if d.writes++; d.writes == 1 {
		return 0, syscall.ENOSPC
	}
	return d.Buffer.Write(p)
}

// TestQueueOutlivesAFullDisk: it loses lines and nothing else.
func TestQueueOutlivesAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d disk
		q := NewQueue(&d)
		log := slog.New(slog.NewTextHandler(q, nil))
		log.Info("lost")
		synctest.Wait()
		log.Info("kept")
		q.Close(time.Second)
		if got := d.String(); strings.Contains(got, "lost") || !strings.Contains(got, "msg=kept") {
			t.Errorf("the log has %q", got)
		}
	})
}
