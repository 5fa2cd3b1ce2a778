"""Networks, one family a file: config in, module out. None of them knows how it is trained or run."""
