"""The evaluator: one definition, one estimator, one unit per metric, for any model."""
