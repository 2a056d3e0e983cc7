"""Decides what is trained next and which trials go on: study, samplers, surrogate, rungs. Needs no Ray and no torch."""
