"""Experiments whose rows make up the tables of README.md and RESULTS.md."""
