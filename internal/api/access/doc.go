// Package access says who may use the gateway: the one token of the configuration, or several from a file, each with scopes, environments, a rate and a
// quota of runners.
//
// Only SHA-256 sums of secrets are kept, and a secret is compared with all of them in constant time. The file can be read again while requests are served; a
// file that is wrong changes nothing. Runners belong to the token that claimed them, under a name that survives restarts and new secrets: [Token.Owner].
package access
