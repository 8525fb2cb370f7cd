"""Time by phase, memory by part, and both against their limits and against other methods."""
