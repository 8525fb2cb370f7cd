"""Training the adapter: recipes, samples, the loop, checkpoints."""
