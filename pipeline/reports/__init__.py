"""What a run shows people: pages, figures and pictures."""
