"""Files of images: bytes to pixels and back, and what a file says beside its pixels."""
