package reload

// Running is for tests.
var Running = running
