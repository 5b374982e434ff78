"""Image models in plain torch: architectures, tasks, losses, checkpoints. Nothing here knows Ray, Arrow or storage."""
