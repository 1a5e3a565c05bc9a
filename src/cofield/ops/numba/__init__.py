"""CPU kernels, compiled on first use and cached: serial, so that they are safe in every worker process."""
