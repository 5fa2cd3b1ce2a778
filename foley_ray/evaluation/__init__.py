"""How good is it: distances between sets of sounds, a classifier that knows what a class sounds like, and reports."""
