"""The `xdyna` command: one file per sub-command."""
