//go:build linux && cgo

package nvidia

import (
	"context"
	"errors"
	"slices"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// reader asks for what may not be known. What cannot be found out is left out; what is wrong with a GPU or with the driver is kept, and nothing more is asked of it.
type reader struct {
	ctx     context.Context
	library *library
	lost    error // of the GPU that is being looked at
	broken  error // of the driver
}

// get asks one function. The names are of the function in the library and of its older versions.
func get[T any](r *reader, f func() (T, nvml.Return), names ...string) (v T, ok bool) {
	if r.broken != nil || r.lost != nil {
		return v, false
	}
	v, err := call(r.ctx, r.library, names, r.library.timeout, f)
	if err == nil {
		return v, true
	}
	switch {
	case broken(err) != nil:
		r.broken = err
	case slices.Contains([]nvml.Return{nvml.ERROR_GPU_IS_LOST, nvml.ERROR_RESET_REQUIRED}, codeOf(err)):
		r.lost = err
	}
	return v, false
}

// broken is the error if it is one of the driver as a whole, else nil.
func broken(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errHangs), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	switch codeOf(err) {
	case nvml.ERROR_UNINITIALIZED, nvml.ERROR_DRIVER_NOT_LOADED, nvml.ERROR_LIB_RM_VERSION_MISMATCH, nvml.ERROR_LIBRARY_NOT_FOUND:
		return err
	}
	return nil
}
