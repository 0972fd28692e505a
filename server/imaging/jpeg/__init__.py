"""JPEG: read by its markers, turned by its coefficients or by its pixels."""
