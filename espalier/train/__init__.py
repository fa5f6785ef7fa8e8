"""Data for every verb, and evaluation on them."""
