"""`eecompile bench`: what each piece of a network costs at each clock, measured where it can be."""
