package dto

import "time"

// Pools is the list of all pools, without their runners.
type Pools struct {
	Pools []Pool `json:"pools"`
}

// Pool is one environment's pool as people look at it.
type Pool struct {
	ID         int            `json:"id"`
	Wanted     int            `json:"wanted"`     // runners that shall stand ready now
	Configured int            `json:"configured"` // the environment's prewarmingPoolSize
	Idle       int            `json:"idle"`
	Starting   int            `json:"starting"` // to be created, or not ready yet
	Used       int            `json:"used"`
	Removing   int            `json:"removing"`
	Failed     int            `json:"failed"` // of those starting and removing, how many could not be started
	Automatic  *PoolAutomatic `json:"automatic,omitempty"`
	Failures   *PoolFailures  `json:"failures,omitempty"` // until a start has worked
	Shortage   *PoolShortage  `json:"shortage,omitempty"` // while the cluster has no room for all that are wanted
	Devices    []Device       `json:"devices,omitempty"`  // that each runner has
	Claims     PoolClaims     `json:"claims"`
	Queue      PoolQueue      `json:"queue"`
	Limits     PoolLimits     `json:"limits"`
	Runners    []PoolRunner   `json:"runners,omitempty"`
}

// PoolAutomatic is what a size that follows the claims is chosen by.
type PoolAutomatic struct {
	Min          int     `json:"min"`
	Max          int     `json:"max"`
	Needed       int     `json:"needed"`
	StartSeconds float64 `json:"startSeconds"` // that a start is reckoned to take
}

// PoolFailures are starts in a row that failed.
type PoolFailures struct {
	InARow  int        `json:"inARow"`
	Last    time.Time  `json:"last"`
	Reason  string     `json:"reason"`
	RetryAt *time.Time `json:"retryAt,omitempty"` // missing = at once
}

// PoolShortage says that the cluster has no room for all runners that are wanted.
type PoolShortage struct {
	Possible int       `json:"possible"` // runners that it has room for, used ones included
	Since    time.Time `json:"since"`
	Reason   string    `json:"reason"`
}

// PoolClaims counts the claims that this gateway has had for the pool.
type PoolClaims struct {
	Total        uint64  `json:"total"`
	ServedAtOnce uint64  `json:"servedAtOnce"`
	HitRate      float64 `json:"hitRate"` // share served at once, lately
}

// PoolQueue is the claims that wait.
type PoolQueue struct {
	Waiting         int     `json:"waiting"`
	LongestSeconds  float64 `json:"longestSeconds"`
	EstimateSeconds float64 `json:"estimateSeconds"` // that one more would wait; 0 = it cannot be told
}

// PoolLimits are the configured ones; 0 = no limit.
type PoolLimits struct {
	MaxRunners int `json:"maxRunners"`
	Runners    int `json:"runners"` // that count against it, of all environments
	MaxUsed    int `json:"maxUsed"`
}

// PoolRunner is one runner.
type PoolRunner struct {
	ID         string    `json:"id"`
	State      string    `json:"state"` // creating, starting, idle, used or removing
	Since      time.Time `json:"since"` // in this state
	AgeSeconds float64   `json:"ageSeconds"`
	Current    bool      `json:"current"` // made of the environment's present definition
	Failed     bool      `json:"failed,omitempty"`
	Reason     string    `json:"reason,omitempty"`
}
