"""What can be built for: board files, linkers, and lowering through TVM."""
