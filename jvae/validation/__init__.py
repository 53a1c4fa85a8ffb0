"""The rules for configs: every key, incompatible values, and one check of a whole config."""
