"""Reference runs: the commands a person would type, in the order they would type them."""
