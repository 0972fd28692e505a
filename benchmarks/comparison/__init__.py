"""The comparison: one process, the cluster and other designs, driven by locust, with a report."""
