"""The apps that the live tests serve: real modules, as a user would write them."""
