"""JPEG: read by its markers, and turned by its coefficients or its pixels."""
