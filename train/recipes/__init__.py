"""One flat file per training recipe."""
