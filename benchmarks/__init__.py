"""Benchmarks: what the cluster costs and what it gives, as ratios of one run."""
