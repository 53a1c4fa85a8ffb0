"""Figures of a trained run, and a self-contained HTML page that works offline."""
