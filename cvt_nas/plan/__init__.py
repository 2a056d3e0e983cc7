"""Forecasts the time and memory of a search before it begins, from measured speeds."""
