"""The lowerings: small functions in files by family, registered for the overloads that they take."""
