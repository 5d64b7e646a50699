"""Networks whose features metrics compare: ours to write, with the parameter names of the files that are published."""
