package rotation

// exceptLinks is the name under which a person accepts that connections between nodes from before the swap live on.
const exceptLinks = "links"

// links are the connections of a node to other nodes from before the swap: -1 and why, while nobody tells of them.
func links(string) (old int, why string) {
	return -1, "its agent does not tell of them"
}
