"""`sharedllm serve`: an OpenAI-compatible API and a page, over one model. See docs/SERVE.md.

engine, batch, sampling, written    the thread that owns the model: rows that decode together
work                                what it does between their tokens, and in which order
shelf, long_prompts, keeping        texts that are kept: uploaded ones, long prompts, what both take of memory and disk
folder                              of both: whose it is, and what of it cannot be used
reading, split                      how they are read, what of a prompt is
map                                 what a question reads of its contexts, and its answer attended to
schemas, answers, routes_*, guard   HTTP; bodies, turns: what of it is large, and how much of that at once
"""
