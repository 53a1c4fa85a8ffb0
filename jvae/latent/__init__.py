"""How z is found and how its densities are computed."""
