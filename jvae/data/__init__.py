"""Corpora: the embedded one, files on disk, and the rows a model reads."""
