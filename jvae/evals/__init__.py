"""Evaluation: each metric has one definition, one estimator and one unit for every model."""
