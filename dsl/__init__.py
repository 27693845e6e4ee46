"""The language of `.ee` files: grammar, parser, checks, units and the formatter."""
