"""What images say about the table that describes them: each module tests one kind of claim."""
