"""Passes that change how wide a model is: units leave (pruning) or arrive (growth), together wherever they stand."""
