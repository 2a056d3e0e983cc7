"""Followers of a search: the terminal, experiment trackers, and the live page of a run."""
