"""`sharedllm serve`: an OpenAI-compatible API and a page, over one model. See docs/SERVE.md.

engine, batch, sampling, written    the thread that owns the model: rows that decode together
shelf, reading, split               contexts that are kept, and what of a prompt goes into one
schemas, answers, routes_*, guard   HTTP
"""
