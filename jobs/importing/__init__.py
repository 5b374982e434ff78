"""The parts of `imagemill models import`: read a model from its files, and write it as a checkpoint."""
