"""Source networks behind one interface, and the passes over them, each written once."""
