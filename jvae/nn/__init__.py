"""Layers and stacks shared by all models. Linen modules hold one layer; stacks run them over
parameters stacked on axis 0.
"""
