"""Small modules inserted between the layers' own."""
