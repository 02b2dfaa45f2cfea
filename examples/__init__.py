"""Small complete programs around precision-search, which the docs explain and the tests run."""
