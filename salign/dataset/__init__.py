"""Groups of rated responses: from interactions, from others' files, and out again."""
