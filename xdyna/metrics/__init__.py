"""Measures of generated clips: functions from uint8 RGB [F, H, W, 3] to one float, each defined in its own file."""
