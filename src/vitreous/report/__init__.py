"""What a person looks at: the self-contained HTML page and static pictures."""
