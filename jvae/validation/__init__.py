"""What a config may say: every key, what excludes what, and the one check of all of it."""
