"""The root supervisor process and the program's link to it."""
