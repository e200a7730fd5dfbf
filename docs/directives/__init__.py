"""What our pages show that is taken from the code."""
