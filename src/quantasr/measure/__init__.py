"""Measure: error rates, times, memory, and what the engine really executes."""
