"""Priors, posteriors and their densities, KL divergences and likelihood bounds."""
