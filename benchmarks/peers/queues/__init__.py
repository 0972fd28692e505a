"""Job queues that ours is compared with: how each is started, submitted to and worked for."""
