"""What tests and benchmarks both use: servers, clients, processes, and answers that can be checked."""
