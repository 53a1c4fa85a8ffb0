"""A run and its directory: building it from a config, its data, checkpoints, metrics, exports."""
