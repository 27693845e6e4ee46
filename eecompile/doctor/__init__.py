"""`eecompile doctor`: what this machine can do, what is missing, and how to get it."""
