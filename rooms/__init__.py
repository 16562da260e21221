"""The generated data set: furnished rooms with exact labels."""
