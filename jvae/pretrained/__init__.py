"""Import and export of third-party weights, with strict, declarative tables of names.

This package depends on parameter trees only, not on model code.
"""
