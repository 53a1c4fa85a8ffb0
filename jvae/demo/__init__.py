"""A page in the browser to play with a trained model: `python -m jvae.demo optimus-tiny`.

`page` lays out what the other modules compute; only `page` imports Gradio.
"""
