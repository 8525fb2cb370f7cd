"""Figures of results files: one file a kind of row, each with what is drawn (pure data) and how.

`figure.plot` picks by the rows. matplotlib is imported where something is drawn, never by importing this.
"""
