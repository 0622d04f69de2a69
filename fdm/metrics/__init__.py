"""How samples are judged: features, and distances of sets of them."""
