"""Which channels can be removed, and which go together: labels on every value, joined by a walk over the operators."""
