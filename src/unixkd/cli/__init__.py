"""The command line: words in, one of the other packages called; imports no torch."""
