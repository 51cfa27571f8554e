package owner

func ownerOf(string) (string, bool) { return "", false }
