"""The passes themselves. Every module here is imported when passes are looked up."""
