"""Objectives, optimizers, compiled steps and the training loop."""
