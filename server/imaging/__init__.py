"""Images in, turned images out: bytes to bytes, with no settings, no clock, no log and no framework."""
