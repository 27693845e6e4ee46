"""The shipped example: real handwritten digits and a small trained network for them."""
