"""Configurations, recipes, the wiring, and the tasks that train."""
