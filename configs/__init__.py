"""Shipped configs: one file per system, presets in the config string (`optimus:base`)."""
