"""Files, devices and collectives, for every room."""
