package nullio_test

import (
	"context"
	"fmt"
	"io"

	"rockpool/pkg/nullio"
)

func ExampleStdin() {
	in := nullio.NewStdin(0)
	fmt.Fprint(in, "queued")
	_ = in.Inject(0x1c) // Ctrl-\ of a terminal, ahead of what is queued
	_ = in.Close()
	got, _ := io.ReadAll(in)
	fmt.Printf("%q\n", got)
	// Output: "\x1cqueued"
}

func ExampleStdin_CloseWithError() {
	ctx, cancel := context.WithCancelCause(context.Background())
	in := nullio.NewStdin(0)
	defer context.AfterFunc(ctx, func() { in.CloseWithError(context.Cause(ctx)) })()
	cancel(fmt.Errorf("time limit reached"))
	_, err := in.Read(make([]byte, 1))
	fmt.Println(err)
	// Output: time limit reached
}

func ExampleNull() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // the program has ended
	_, err := nullio.NewNull(ctx).Read(make([]byte, 1))
	fmt.Println(err)
	// Output: EOF
}

func ExampleDiscard() {
	n, err := nullio.Discard{}.Write([]byte("nobody reads this"))
	fmt.Println(n, err)
	// Output: 17 <nil>
}
