"""What the cluster survives: crashes, overload, slow clients, and all of them for a long time."""
