"""Engines run the blocks of a plan on workers and report progress."""
