"""What is trained next, and who goes on: study, samplers, surrogate and rungs. It needs neither Ray nor torch."""
