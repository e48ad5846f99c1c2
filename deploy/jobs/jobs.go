// Package jobs holds the job files that belong to the gateway.
package jobs

import _ "embed"

// TemplateEnvironment is the job that template jobs and runners are derived from.
//
//go:embed template-environment.nomad.hcl
var TemplateEnvironment string
