"""Metrics: accumulate, then compute. They know no model."""
