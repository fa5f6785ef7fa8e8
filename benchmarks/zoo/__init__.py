"""Networks to measure coverage on: model types of `transformers` shrunk by rule, and the classic families."""
