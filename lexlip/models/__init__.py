"""Two towers with a lexicon head or a dense one, their folders and their weights. Knows no trainer."""
