// Package openapi holds the published description of the gateway's API: an OpenAPI 3.1 document of its routes and a JSON Schema (2020-12) of the WebSocket's
// messages. Both are written by hand and held to the code by tests: rows, parameters and fields agree in both directions, and the test suites check every answer
// of a gateway against them.
package openapi

import _ "embed"

// Document is the OpenAPI document, as JSON.
//
//go:embed openapi.json
var Document []byte

// WebSocket is the schema of the WebSocket's messages.
//
//go:embed websocket.schema.json
var WebSocket []byte
