// Package hostile attacks a live service as the programs of strangers and bad clients would. It is one table of cases, named after the project's hostile
// checklist; each is a small program, or a script of requests, and has an expected verdict. Beside every case a neighbour's echo is timed, and after it
// everything that the service holds must be as it was before. The tests need root, python3 and gcc, and say so when they skip.
package hostile
