"""What an image costs: the service over the bare function, other methods, encoders, wake-ups."""
