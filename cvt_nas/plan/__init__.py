"""What a search will take, measured before anything is spent."""
