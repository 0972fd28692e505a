"""Our job queue compared with those that people use: speed, cost, and what kills lose (`make queues`)."""
