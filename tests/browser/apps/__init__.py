"""Apps that the tests in a browser serve."""
