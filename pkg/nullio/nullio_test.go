package nullio_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"rockpool/pkg/nullio"
)

func TestNullBlocksUntilItsEnd(t *testing.T) {
	for name, end := range map[string]func(*nullio.Null, context.CancelFunc){
		"closed":        func(n *nullio.Null, _ context.CancelFunc) { _ = n.Close(); _ = n.Close() },
		"context ended": func(_ *nullio.Null, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				n := nullio.NewNull(ctx)
				got := make(chan error, 1)
				go func() {
					_, err := n.Read(make([]byte, 1))
					got <- err
				}()
				synctest.Wait()
				select {
				case err := <-got:
					t.Fatalf("read returned %v before the end", err)
				default:
				}
				end(n, cancel)
				if err := <-got; err != io.EOF {
					t.Fatalf("read: %v, want EOF", err)
				}
			})
		})
	}
}

func TestReadingNothingReturnsAtOnce(t *testing.T) {
	if n, err := nullio.NewNull(t.Context()).Read(nil); n != 0 || err != nil {
		t.Fatalf("null: %d, %v", n, err)
	}
	if n, err := nullio.NewStdin(1).Read(nil); n != 0 || err != nil {
		t.Fatalf("stdin: %d, %v", n, err)
	}
}

func TestDiscardTakesEverything(t *testing.T) {
	var d nullio.Discard
	n, err := io.Copy(d, strings.NewReader(strings.Repeat("x", 100_000)))
	if n != 100_000 || err != nil {
		t.Fatalf("copy: %d, %v", n, err)
	}
	if n, err := io.WriteString(d, "abc"); n != 3 || err != nil {
		t.Fatalf("string: %d, %v", n, err)
	}
}

func TestStdinDeliversInOrderWithBackPressure(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.IntRange(1, 9).Draw(rt, "size")
		chunks := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 25), 0, 12).Draw(rt, "chunks")
		reads := rapid.IntRange(1, 11).Draw(rt, "read size")
		s := nullio.NewStdin(size)
		failed := make(chan error, 1)
		go func() {
			defer close(failed)
			for _, c := range chunks {
				if n, err := s.Write(c); n != len(c) || err != nil {
					failed <- errors.New("short write")
				}
			}
			_ = s.Close()
		}()
		var got []byte
		p := make([]byte, reads)
		for {
			n, err := s.Read(p)
			got = append(got, p[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil || n == 0 {
				rt.Fatalf("read: %d, %v", n, err)
			}
			if s.Buffered() > size {
				rt.Fatalf("%d bytes held, bound is %d", s.Buffered(), size)
			}
		}
		if err := <-failed; err != nil {
			rt.Fatal(err)
		}
		if want := bytes.Join(chunks, nil); !bytes.Equal(got, want) {
			rt.Fatalf("got %q, want %q", got, want)
		}
	})
}

func TestAWriterWaitsWhileTheQueueIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := nullio.NewStdin(4)
		var written time.Time
		start := time.Now()
		go func() {
			if n, err := s.Write([]byte("123456")); n != 6 || err != nil {
				t.Errorf("write: %d, %v", n, err)
			}
			written = time.Now()
		}()
		time.Sleep(time.Minute)
		if !written.IsZero() {
			t.Fatal("the write returned though the queue was full")
		}
		got := make([]byte, 6)
		if _, err := io.ReadFull(s, got); err != nil || string(got) != "123456" {
			t.Fatalf("read %q, %v", got, err)
		}
		synctest.Wait()
		if written.Sub(start) != time.Minute {
			t.Fatalf("the write returned after %v", written.Sub(start))
		}
	})
}

func TestControlBytesOvertakeTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := nullio.NewStdin(4)
		go func() { _, _ = s.Write([]byte("abcdef")) }() // blocks half way
		synctest.Wait()
		if err := s.Inject(0x1c, 0x04); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 1)
		var got []byte
		for range 8 {
			if _, err := s.Read(p); err != nil {
				t.Fatal(err)
			}
			got = append(got, p...)
		}
		if string(got) != "\x1c\x04abcdef" {
			t.Fatalf("got %q", got)
		}
	})
}

func TestControlBytesAreBounded(t *testing.T) {
	s := nullio.NewStdin(1)
	if err := s.Inject(make([]byte, nullio.ControlSize)...); err != nil {
		t.Fatal(err)
	}
	if err := s.Inject(3); !errors.Is(err, nullio.ErrControlFull) {
		t.Fatalf("inject: %v", err)
	}
}

func TestCloseLetsTheQueueDrain(t *testing.T) {
	s := nullio.NewStdin(8)
	_, _ = s.Write([]byte("rest"))
	_ = s.Close()
	if n, err := s.Write([]byte("x")); n != 0 || !errors.Is(err, io.ErrClosedPipe) {
		t.Fatalf("write after close: %d, %v", n, err)
	}
	if err := s.Inject(0x1c); err != nil {
		t.Fatalf("a program that still reads can be interrupted: %v", err)
	}
	got, err := io.ReadAll(s)
	if string(got) != "\x1crest" || err != nil {
		t.Fatalf("read %q, %v", got, err)
	}
	if err := s.Inject(0x1c); !errors.Is(err, io.ErrClosedPipe) {
		t.Fatalf("inject after the end: %v", err)
	}
}

func TestCloseWithErrorWakesEverybody(t *testing.T) {
	cut := errors.New("connection lost")
	synctest.Test(t, func(t *testing.T) {
		empty, full := nullio.NewStdin(1), nullio.NewStdin(1)
		errs := make(chan error, 2)
		go func() { _, err := empty.Read(make([]byte, 1)); errs <- err }()
		go func() { _, err := full.Write([]byte("ab")); errs <- err }()
		synctest.Wait()
		empty.CloseWithError(cut)
		full.CloseWithError(cut)
		full.CloseWithError(errors.New("later"))
		for range 2 {
			if err := <-errs; !errors.Is(err, cut) {
				t.Errorf("got %v", err)
			}
		}
		if _, err := full.Read(make([]byte, 1)); !errors.Is(err, cut) {
			t.Errorf("what was queued is dropped: %v", err)
		}
	})
}

func TestAnIdleReaderAllocatesNothing(t *testing.T) {
	s := nullio.NewStdin(64)
	p := make([]byte, 16)
	if n := testing.AllocsPerRun(100, func() {
		_, _ = s.Write(p)
		_, _ = s.Read(p)
	}); n != 0 {
		t.Fatalf("%v allocations for one write and read", n)
	}
}
