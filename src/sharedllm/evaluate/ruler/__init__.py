"""RULER (arXiv 2404.06654): thirteen tasks of any length, made here with its parameters and wording.

`tasks` has them all, `making` draws samples, `files` reads RULER's own, `run` asks them.
"""
