"""The steps of a run, one module each, in this order: survey, choose, make, write."""
