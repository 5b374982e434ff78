"""Decode and encode image files, and carry metadata from the source to the output."""
