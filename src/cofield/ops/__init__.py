"""What is slow: a readable reference each, and kernels beside it."""
