"""From text to batches of packed rows, and the embedded corpus."""
