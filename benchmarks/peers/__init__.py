"""Small services of other kinds that ours is compared with: `catalogue` says how each is started."""
