"""The gateway between gunicorn and the service: the only package that knows gunicorn."""
