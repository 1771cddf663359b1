"""Files, progress, devices and processes."""
