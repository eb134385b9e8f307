"""The other ways to make the call, each written as an expert would."""
