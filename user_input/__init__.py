"""Text from users -> values: single values, text files, flags. Every refusal says what is allowed."""
