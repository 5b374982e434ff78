"""What `imagemill train` is made of: the config, what is looked at first, crops, learning, states, what a person sees."""
