// Package several runs two gateways on one orchestrator, all of them real processes, behind a balancer, and kills them.
package several
