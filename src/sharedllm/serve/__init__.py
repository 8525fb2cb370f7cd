"""`sharedllm serve`: an OpenAI-compatible API and a page, over one model. See docs/SERVE.md.

engine, batch, sampling, written    the thread that owns the model: rows that decode together
work                                what it does between their tokens, and in which order
shelf, reading, split               contexts that are kept, what of a prompt goes into one
map                                 what a question reads of its contexts, and its answer attended to
schemas, answers, routes_*, guard   HTTP
"""
