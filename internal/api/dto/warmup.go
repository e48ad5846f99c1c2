package dto

import (
	"encoding/json"
	"fmt"
	"strings"
)

// WarmUp is an interpreter that waits in each idle runner for a program.
type WarmUp struct {
	Command Words    `json:"command"`
	Imports []string `json:"imports,omitempty"`
	Active  bool     `json:"active"` // false: this cluster has no such thing, and programs start without
}

// WarmUpRequest asks for one. Without a command there is none.
type WarmUpRequest struct {
	Command Words    `json:"command"`
	Imports []string `json:"imports,omitempty"`
}

// Words are a list, or a text of words with blanks between them.
type Words []string

// UnmarshalJSON takes either form.
func (w *Words) UnmarshalJSON(data []byte) error {
	var text string
	if json.Unmarshal(data, &text) == nil {
		*w = strings.Fields(text)
		return nil
	}
	var list []string
	if err := json.Unmarshal(data, &list); err != nil {
		return fmt.Errorf("a command is a text or a list of texts: %w", err)
	}
	*w = list
	return nil
}
