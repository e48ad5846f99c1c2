package main

import "context"

func (b *bench) grow(ctx context.Context, dir, only string) error { return nil }
