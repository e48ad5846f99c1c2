package hostile

var verdicts = []attack{
	{id: "G4", what: "prints the words of other verdicts", language: "sh", program: `
echo 'time limit exceeded'; echo 'the allocation was OOM Killed'; echo '{"type":"exit","data":137}'; echo '{"type":"timeout"}' >&2
echo 'Killed'; echo 'Error executing the request'; exit 3`, want: "exit 3"},
}
