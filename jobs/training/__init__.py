"""The parts of `imagemill train`: config, checks, images, crops, workers, states, progress and figures."""
