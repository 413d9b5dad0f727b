"""What only the book needs: figures, presets, self-checks. Science imports none of it."""
