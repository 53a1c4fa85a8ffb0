"""Shipped configs: one file per system, with presets in the config string (`optimus:base`)."""
