"""Image models in plain torch: architectures, tasks, losses and checkpoints. Nothing here imports Ray, Arrow or storage."""
