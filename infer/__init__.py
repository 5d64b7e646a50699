"""Jobs that read files, run the pipeline and write files."""
