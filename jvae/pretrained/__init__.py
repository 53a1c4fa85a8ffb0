"""Foreign weights in and out: declarative, strict tables of names. Knows parameter trees only,
never model code.
"""
