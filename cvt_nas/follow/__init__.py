"""Who hears of a search: a terminal, experiment trackers, and the page that watches a run."""
