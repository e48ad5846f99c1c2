package hostile

var requests = []attack{}
