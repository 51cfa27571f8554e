//go:build !unix

package consensus

// diskFree is not measured here: controllers run on Unix.
func diskFree(string) (float64, error) { return 1, nil }
