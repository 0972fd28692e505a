"""File formats as stored: read, checked, and written again with other pixels."""
