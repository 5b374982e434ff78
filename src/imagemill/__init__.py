"""Batch image pipeline on Ray: every image ends as one committed row or one reject with a reason."""
