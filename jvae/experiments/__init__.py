"""Experiments that produce the tables of README.md and RESULTS.md."""
