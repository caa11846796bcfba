"""Networks and map representations."""
