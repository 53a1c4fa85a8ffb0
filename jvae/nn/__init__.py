"""Layers and stacks shared by all models.

A Linen module is one layer; a stack runs it over parameters stacked on axis 0.
"""
